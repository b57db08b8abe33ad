package controlplane

import (
	"context"
	"fmt"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
)

// timeoutSlack is what a request may take in addition to the time-outs of the webhook.
const timeoutSlack = 2 * time.Second

// leaseWait is longer than the time after which a kubelet renews its lease.
const leaseWait = 30 * time.Second

var _ = Describe("an outage of the webhook", Label(labelOutage), Serial, func() {
	It("refuses what is labelled, lets everything else work, and ends by itself", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		required := map[string]string{labelExplicitDeletion: "required"}
		cascading := map[string]string{labelDeletionProtection: "cascading"}
		as := ordinary.client()
		protected := createPod(ctx, namespace, newPod("protected", required))
		createPod(ctx, namespace, newPod("unlabelled", nil))
		unscheduled := newPod("unscheduled", required)
		unscheduled.Spec.NodeSelector = map[string]string{"no": "node"}
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, unscheduled, metav1.CreateOptions{}))
		framework.Must(client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "labelled", Labels: cascading}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone},
		}, metav1.CreateOptions{}))
		always := framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "always", Labels: map[string]string{labelDeletionProtection: "always"}},
		}, metav1.CreateOptions{}))
		for name, labels := range map[string]map[string]string{namespace + "-node": nil, namespace + "-labelled-node": cascading} {
			framework.Must(client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))
			DeferCleanup(func(ctx SpecContext) {
				kubectl(ctx, "label", "node", name, labelDeletionProtection+"-", "--overwrite")
				kubectl(ctx, "delete", "node", name, "--ignore-not-found")
			}, NodeTimeout(podStart))
		}

		By("a pool that an outage holds, and one that it lets go until the limit")
		const held, free = "outage-held", "outage-free"
		createPool(ctx, held, 30, 30)
		createNodePolicy(ctx, nodePolicy(held, held, "maxDeletions: 20"))
		createPool(ctx, free, 5, 5)
		createNodePolicy(ctx, nodePolicy(free, free, "maxDeletions: 2, whenUnavailable: Allow"))
		for _, name := range numbered(free, 0, 1) {
			Expect(as.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})).To(Succeed())
		}
		Eventually(ctx, func(g Gomega) {
			configuration := framework.Try(client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, webhookinstall.Configuration, metav1.GetOptions{})).In(g)
			g.Expect(configuration.Webhooks).To(ContainElement(HaveField("Name", "pool.node-deletion.kubelet-guard.io")))
		}).WithTimeout(leaderWait).Should(Succeed(), "the entry of the pools")

		By("a protected pod that is still terminating when the webhook stops")
		lingering := newPod("lingering", required)
		lingering.Spec.TerminationGracePeriodSeconds = new(int64(60))
		lingering.Spec.Containers[0].Args = []string{"--term-delay=20s"}
		createdLingering := createPod(ctx, namespace, lingering)
		Expect(as.CoreV1().Pods(namespace).Delete(ctx, "lingering", metav1.DeleteOptions{})).To(Succeed())

		By("protected workloads that will be changed")
		rolled := newDeployment("rolled", 2, nil)
		rolled.Spec.Template.Labels[labelExplicitDeletion] = "required"
		createDeployment(ctx, namespace, rolled)
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "job"}, Spec: batchv1.JobSpec{Template: podTemplate(map[string]string{"app": "job", labelExplicitDeletion: "required"})}}
		job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
		framework.Must(client.BatchV1().Jobs(namespace).Create(ctx, job, metav1.CreateOptions{}))
		labelled := func(selector string) func() ([]corev1.Pod, error) {
			return func() ([]corev1.Pod, error) {
				list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
				return list.Items, err
			}
		}
		Eventually(ctx, labelled("app=job")).WithTimeout(podStart).Should(HaveLen(1))

		By("a namespace that chose the webhook for /scale")
		reviewed := newNamespace(ctx, reviewedByWebhook)
		for name, labels := range map[string]map[string]string{"plain": nil, "confirmed": {labelReplicasProtection: "confirm"}} {
			framework.Must(client.AppsV1().Deployments(reviewed).Create(ctx, newDeployment(name, 0, labels), metav1.CreateOptions{}))
		}

		By("stopping the webhook")
		stopWebhook(ctx)
		stopped := time.Now()
		lease := func() (time.Time, error) {
			lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, cluster.NodeName(), metav1.GetOptions{})
			if err != nil {
				return time.Time{}, err
			}
			return lease.Spec.RenewTime.Time, nil
		}

		By("labelled: refused, and the message names the webhook")
		outage := func(entry string) OmegaMatcher {
			return MatchError(And(ContainSubstring(`failed calling webhook "`+entry+`.kubelet-guard.io"`), ContainSubstring("guard-webhook")))
		}
		Expect(as.CoreV1().Pods(namespace).Delete(ctx, "protected", metav1.DeleteOptions{})).To(outage("pod-deletion"))
		Expect(as.CoreV1().Services(namespace).Delete(ctx, "labelled", metav1.DeleteOptions{})).To(outage("cascading-deletion"))
		Expect(as.CoreV1().Nodes().Delete(ctx, namespace+"-labelled-node", metav1.DeleteOptions{})).To(outage("labelled.node-deletion"))
		Expect(framework.ErrorOf(as.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:null}}}`, labelProtectPods), metav1.PatchOptions{}))).To(outage("protection"))
		Expect(as.CoreV1().ConfigMaps(namespace).Delete(ctx, always.Name, metav1.DeleteOptions{})).To(BeRefused("configmaps always was not deleted"), "a policy needs no webhook")
		framework.Must(overrider.client().CoreV1().ConfigMaps(namespace).Patch(ctx, always.Name, types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, annotationOverride, overrideFor(time.Hour, "outage")), metav1.PatchOptions{}))
		Expect(as.CoreV1().ConfigMaps(namespace).Delete(ctx, always.Name, metav1.DeleteOptions{})).To(BeRefused("configmaps always was not deleted", "may not use the verb override"), "an override by who may not")
		Expect(overrider.client().CoreV1().ConfigMaps(namespace).Delete(ctx, always.Name, metav1.DeleteOptions{})).To(outage("deletion.override"), "nobody can judge the expiry")

		By("/scale where the webhook was chosen for it: up passes, down is refused, also without a label")
		for _, name := range []string{"plain", "confirmed"} {
			scale := func(replicas int) error {
				return framework.ErrorOf(as.AppsV1().Deployments(reviewed).Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{}, "scale"))
			}
			Expect(scale(1)).To(Succeed(), name)
			Expect(scale(0)).To(outage("scale-down"), name)
		}
		_, err := as.AppsV1().Deployments(reviewed).Patch(ctx, "plain", types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "an update of the workload itself")
		Expect(framework.ErrorOf(as.AppsV1().Deployments(reviewed).Patch(ctx, "confirmed", types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{}))).To(BeRefused("were not changed from 1 to 0"), "a policy decides that")

		By("300 deletions of nodes of a pool: none passes; an override does")
		looping := ordinary.unthrottled()
		for range 10 {
			for _, name := range numbered(held, 0, 29) {
				Expect(looping.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})).To(outage("pool.node-deletion"))
			}
		}
		Expect(nodeController.client().CoreV1().Nodes().Delete(ctx, held+"-000", metav1.DeleteOptions{})).To(outage("pool.node-deletion"))
		Expect(nodesOf(ctx, held)).To(HaveLen(30))
		ordinary.kubectl(ctx, "annotate", "node", held+"-000", annotationOverride+"="+overrideFor(time.Hour, "outage")).ExpectDone()
		Expect(as.CoreV1().Nodes().Delete(ctx, held+"-000", metav1.DeleteOptions{})).To(outage("pool.node-deletion"), "without the verb")
		Expect(overrider.client().CoreV1().Nodes().Delete(ctx, held+"-000", metav1.DeleteOptions{})).To(Succeed())

		By("a pool whose limit is used up: the API server knows")
		for _, name := range numbered(free, 2, 4) {
			Expect(as.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})).To(BeRefused("NodeDeletionPolicy "+free+" limits deletions to 2 in 1h, and 2 count"), "%s", name)
		}
		framework.Must(ordinary.dynamic().Resource(nodePolicyResource).Patch(ctx, free, types.MergePatchType, []byte(`{"spec":{"maxDeletions":3}}`), metav1.PatchOptions{}))
		Eventually(ctx, func() error {
			return as.CoreV1().Nodes().Delete(ctx, free+"-002", metav1.DeleteOptions{})
		}).WithTimeout(policyWait).Should(Succeed(), "after the limit was raised")

		By("everything else: works")
		Expect(as.CoreV1().Pods(namespace).Delete(ctx, "unlabelled", metav1.DeleteOptions{})).To(Succeed())
		Expect(as.CoreV1().Pods(namespace).Delete(ctx, "unscheduled", metav1.DeleteOptions{})).To(Succeed(), "a protected pod that runs nowhere")
		Expect(as.CoreV1().Nodes().Delete(ctx, namespace+"-node", metav1.DeleteOptions{})).To(Succeed(), "an unlabelled node")
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		ordinary.kubectl(ctx, "scale", "deployment", "web", "-n", namespace, "--replicas=0").ExpectDone()
		ordinary.kubectl(ctx, "delete", "deployment", "web", "-n", namespace).ExpectDone()
		createPod(ctx, namespace, newPod("another", required))
		By("workloads of protected pods: rolled out, scaled down, suspended")
		requested := time.Now()
		ordinary.kubectl(ctx, "set", "env", "deployment/rolled", "-n", namespace, "REVISION=2").ExpectDone()
		ordinary.kubectl(ctx, "rollout", "status", "deployment/rolled", "-n", namespace, "--timeout=1m").ExpectDone()
		ordinary.kubectl(ctx, "scale", "deployment/rolled", "-n", namespace, "--replicas=0").ExpectDone()
		ordinary.kubectl(ctx, "patch", "job", "job", "-n", namespace, "-p", `{"spec":{"suspend":true}}`).ExpectDone()
		Eventually(ctx, labelled("app in (rolled, job)")).WithTimeout(podStart).Should(BeEmpty(), "pods of the workloads")
		framework.Progress("outage: a roll-out, a scale-down and a suspension of protected pods took %.0f s", time.Since(requested).Seconds())
		ordinary.kubectl(ctx, "create", "namespace", namespace+"-other").ExpectDone()
		ordinary.kubectl(ctx, "delete", "namespace", namespace+"-other").ExpectDone()
		awaitGone(ctx, createdLingering)
		Eventually(ctx, lease).WithTimeout(leaseWait).Should(BeTemporally(">", stopped), "the lease of the node to be renewed")

		By("starting it again")
		scaleWebhook(ctx, webhookReplicas)
		Expect(as.CoreV1().Pods(namespace).Delete(ctx, "protected", metav1.DeleteOptions{})).To(Succeed())
		awaitGone(ctx, protected)
		Expect(overrider.client().CoreV1().ConfigMaps(namespace).Delete(ctx, always.Name, metav1.DeleteOptions{})).To(Succeed())
		_, err = client.CoreV1().ConfigMaps(namespace).Get(ctx, always.Name, metav1.GetOptions{})
		Expect(apierrors.IsNotFound(err)).To(BeTrue(), "%v", err)
	}, SpecTimeout(clusterStart))

	It("that never answers delays what needs it by its time-outs, and nothing else", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		as := ordinary.client()
		rolled := newDeployment("rolled", 1, nil)
		rolled.Spec.Template.Labels[labelExplicitDeletion] = "required"
		createDeployment(ctx, namespace, rolled)
		createPod(ctx, namespace, newPod("protected", map[string]string{labelExplicitDeletion: "required"}))
		for _, name := range []string{"deleted", "evicted"} {
			createPod(ctx, namespace, newPod(name, nil))
		}
		reviewed := newNamespace(ctx, reviewedByWebhook)
		framework.Must(client.AppsV1().Deployments(reviewed).Create(ctx, newDeployment("plain", 1, nil), metav1.CreateOptions{}))
		By("freezing both replicas, as a network that drops packets does to them")
		signalWebhook := func(ctx context.Context, signal syscall.Signal) {
			for _, pod := range webhookPods(ctx) {
				for _, container := range framework.Must(containersOf(ctx, pod.UID)) {
					Expect(container.Process.Signal(signal)).To(Succeed())
				}
			}
		}
		DeferCleanup(func(ctx SpecContext) {
			signalWebhook(ctx, syscall.SIGCONT)
			awaitWebhook(ctx)
		}, NodeTimeout(clusterStart))
		signalWebhook(ctx, syscall.SIGSTOP)
		scale := func(replicas int) func() error {
			return func() error {
				return framework.ErrorOf(as.AppsV1().Deployments(reviewed).Patch(ctx, "plain", types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, "scale"))
			}
		}
		requests := []struct {
			limit time.Duration
			what  string
			do    func() error
			want  OmegaMatcher
		}{
			{0, "the deletion of a pod without the label", func() error {
				return as.CoreV1().Pods(namespace).Delete(ctx, "deleted", metav1.DeleteOptions{})
			}, Succeed()},
			{3 * time.Second, "an eviction in a namespace with the grant", func() error { return evict(ctx, namespace, "evicted", nil) }, Succeed()},
			{5 * time.Second, "the deletion of a protected pod", func() error {
				return as.CoreV1().Pods(namespace).Delete(ctx, "protected", metav1.DeleteOptions{})
			}, MatchError(ContainSubstring(`failed calling webhook "pod-deletion.kubelet-guard.io"`))},
			{3 * time.Second, "a scale-up in a namespace that chose the webhook for /scale", scale(2), Succeed()},
			{5 * time.Second, "a scale-down in a namespace that chose the webhook for /scale", scale(0), MatchError(ContainSubstring(`failed calling webhook "scale-down.kubelet-guard.io"`))},
		}
		// Side by side: the replicas get no more requests once they are not ready.
		failures, took := make([]error, len(requests)), make([]time.Duration, len(requests))
		workqueue.ParallelizeUntil(ctx, len(requests), len(requests), func(at int) {
			requested := time.Now()
			failures[at] = requests[at].do()
			took[at] = time.Since(requested)
		})
		for i, request := range requests {
			Expect(failures[i]).To(request.want, request.what)
			framework.Progress("webhook without a response: %s took %.1f s", request.what, took[i].Seconds())
			Expect(took[i]).To(BeNumerically("<", request.limit+timeoutSlack), request.what)
		}
		requested := time.Now()
		ordinary.kubectl(ctx, "scale", "deployment/rolled", "-n", namespace, "--replicas=0").ExpectDone()
		Eventually(ctx, func(g Gomega) []corev1.Pod {
			return framework.Try(client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=rolled"})).In(g).Items
		}).WithTimeout(podStart).Should(BeEmpty())
		framework.Progress("webhook without a response: a scale-down of protected pods took %.1f s", time.Since(requested).Seconds())
	}, SpecTimeout(clusterStart))
})
