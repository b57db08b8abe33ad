package controlplane

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
)

var _ = Describe("the label explicit-deletion", Label(labelPolicies), func() {
	required := map[string]string{labelExplicitDeletion: "required"}
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	label := func(value string) []byte {
		return fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, labelExplicitDeletion, value)
	}

	It("is refused where the namespace does not grant it, and the advice grants it", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		pods := ordinary.client().CoreV1().Pods(namespace)
		_, refusal := pods.Create(ctx, newPod("web", required), dryRun)
		Expect(refusal).To(BeRefused("pod web was not accepted", namespace+" does not"))
		_, err := pods.Create(ctx, newPod("web", nil), dryRun)
		Expect(err).NotTo(HaveOccurred(), "a pod without the label")

		created := createPod(ctx, namespace, newPod("running", nil))
		Expect(framework.ErrorOf(pods.Patch(ctx, created.Name, types.MergePatchType, label(`"required"`), metav1.PatchOptions{}))).To(BeRefused("pod running was not accepted"), "the label on a running pod")

		ordinary.followAdvice(ctx, refusal)
		Eventually(ctx, func() error { return framework.ErrorOf(pods.Create(ctx, newPod("web", required), dryRun)) }).WithTimeout(policyWait).Should(Succeed())
		framework.Must(pods.Patch(ctx, created.Name, types.MergePatchType, label(`"required"`), metav1.PatchOptions{}))
	}, SpecTimeout(specTimeout))

	It("is refused to a controller too, which says so in an event", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		deployment := newDeployment("web", 1, nil)
		deployment.Spec.Template.Labels[labelExplicitDeletion] = "required"
		framework.Must(client.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}))
		Eventually(ctx, func(g Gomega) {
			events := framework.Try(client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})).In(g)
			g.Expect(events.Items).To(ContainElement(HaveField("Message", ContainSubstring("kubectl label namespace "+namespace))))
		}).WithTimeout(controllerWait).Should(Succeed(), "an event of the ReplicaSet")
	}, SpecTimeout(specTimeout))

	DescribeTable("has no other value",
		func(ctx SpecContext, value string) {
			namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
			Expect(framework.ErrorOf(ordinary.client().CoreV1().Pods(namespace).Create(ctx, newPod("web", map[string]string{labelExplicitDeletion: value}), dryRun))).To(BeRefused(`has the one value "required"`))
		},
		Entry(nil, SpecTimeout(specTimeout), "Required"), Entry(nil, SpecTimeout(specTimeout), "true"), Entry("the empty one", SpecTimeout(specTimeout), ""),
	)

	It("is given to no pod by Kubernetes 1.35, which warns where the namespace says default", func(ctx SpecContext) {
		if !kubernetes135() {
			Skip("Kubernetes 1.36 gives it")
		}
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		changed := ordinary.kubectl(ctx, "label", "namespace", namespace, labelProtectPods+"=default", "--overwrite").ExpectDone()
		Expect(changed.Stderr).To(And(HavePrefix("Warning:"), ContainSubstring("pods of namespace "+namespace+" do not get the label kubelet-guard.io/explicit-deletion")))
		created := framework.Must(ordinary.client().CoreV1().Pods(namespace).Create(ctx, newPod("web", nil), dryRun))
		Expect(created.Labels).NotTo(HaveKey(labelExplicitDeletion))
		framework.Must(ordinary.client().CoreV1().Pods(namespace).Create(ctx, newPod("web", required), dryRun))
	}, SpecTimeout(specTimeout))

	It("is given to every new pod where the namespace says default", func(ctx SpecContext) {
		needs136("MutatingAdmissionPolicy v1")
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "default"})
		created := framework.Must(ordinary.client().CoreV1().Pods(namespace).Create(ctx, newPod("web", nil), dryRun))
		Expect(created.Labels).To(HaveKeyWithValue(labelExplicitDeletion, "required"))
		bare := newPod("bare", nil)
		bare.Labels = nil
		created = framework.Must(ordinary.client().CoreV1().Pods(namespace).Create(ctx, bare, dryRun))
		Expect(created.Labels).To(Equal(required), "a pod without any label")

		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		pods := framework.Must(client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{}))
		Expect(pods.Items).To(HaveEach(HaveField("Labels", HaveKeyWithValue(labelExplicitDeletion, "required"))), "pods of a Deployment")
	}, SpecTimeout(specTimeout))

	It("is refused by way of the status too, and leaves the status to the kubelet", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		bare := createPod(ctx, namespace, newPod("bare", nil))
		Expect(framework.ErrorOf(ordinary.client().CoreV1().Pods(namespace).Patch(ctx, "bare", types.StrategicMergePatchType, label(`"required"`), metav1.PatchOptions{}, "status"))).To(BeRefused("pod bare was not accepted"))

		granting := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		// Its readiness was reported by the kubelet of the cluster.
		protected := createPod(ctx, granting, newPod("protected", required))
		for _, pod := range []*corev1.Pod{bare, protected} {
			_, err := nodeUser(pod.Spec.NodeName).client().CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType,
				fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":{"conditions":[{"type":"Ready","message":"still"}]}}`, pod.UID), metav1.PatchOptions{}, "status")
			Expect(err).NotTo(HaveOccurred(), "the status of %s by its node", pod.Name)
		}
	}, SpecTimeout(specTimeout))

	It("stays on a running pod, and comes off one that has not started or has finished", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		pods := ordinary.client().CoreV1().Pods(namespace)
		createPod(ctx, namespace, newPod("running", required))
		for _, body := range [][]byte{label("null"), label(`"no"`)} {
			Expect(framework.ErrorOf(pods.Patch(ctx, "running", types.MergePatchType, body, metav1.PatchOptions{}))).To(BeRefused(), string(body))
		}
		_, err := pods.Patch(ctx, "running", types.MergePatchType, []byte(`{"metadata":{"labels":{"other":"x"}}}`), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "another label")
		Expect(framework.ErrorOf(pods.Patch(ctx, "running", types.StrategicMergePatchType, label("null"), metav1.PatchOptions{}, "status"))).To(BeRefused("pod running keeps the label"), "by way of its status")

		pending := newPod("pending", required)
		pending.Spec.NodeSelector = map[string]string{"no": "node"}
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, pending, metav1.CreateOptions{}))
		_, err = pods.Patch(ctx, "pending", types.MergePatchType, label("null"), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "a pod without a node")

		finished := newPod("finished", required)
		finished.Spec.RestartPolicy = corev1.RestartPolicyNever
		finished.Spec.Containers[0].Args = []string{"--listen=false", "--run-for=1ms"}
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, finished, metav1.CreateOptions{}))
		Eventually(ctx, func(g Gomega) corev1.PodPhase {
			return framework.Try(client.CoreV1().Pods(namespace).Get(ctx, "finished", metav1.GetOptions{})).In(g).Status.Phase
		}).WithTimeout(podStart).Should(Equal(corev1.PodSucceeded))
		_, err = pods.Patch(ctx, "finished", types.MergePatchType, label("null"), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "a pod that has finished")
	}, SpecTimeout(specTimeout))

	It("stays on a pod without a node where the namespace gave it", func(ctx SpecContext) {
		needs136("MutatingAdmissionPolicy v1")
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "default"})
		gated := newPod("gated", nil)
		gated.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "e2e.example.com/gate"}}
		created := framework.Must(client.CoreV1().Pods(namespace).Create(ctx, gated, metav1.CreateOptions{}))
		Expect(created.Labels).To(HaveKeyWithValue(labelExplicitDeletion, "required"))
		Expect(framework.ErrorOf(ordinary.client().CoreV1().Pods(namespace).Patch(ctx, "gated", types.MergePatchType, label("null"), metav1.PatchOptions{}))).To(BeRefused("pod gated keeps the label", "namespace "+namespace+" gives it to all of its pods"))
		_, err := ordinary.client().CoreV1().Pods(namespace).Patch(ctx, "gated", types.JSONPatchType, []byte(`[{"op":"remove","path":"/spec/schedulingGates"}]`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		Expect(err).NotTo(HaveOccurred(), "another change")
	}, SpecTimeout(specTimeout))

	It("stays on a pod that has failed by hearsay, while its containers run", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		// A node without a kubelet, so that nobody corrects the status.
		lonely := newPod("lonely", required)
		lonely.Spec.NodeName = "none-" + namespace
		pods := ordinary.client().CoreV1().Pods(namespace)
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, lonely, metav1.CreateOptions{}))
		report := func(phase, state string) {
			GinkgoHelper()
			framework.Must(pods.Patch(ctx, "lonely", types.MergePatchType, fmt.Appendf(nil,
				`{"status":{"phase":%q,"containerStatuses":[{"name":"workload","image":"i","imageID":"i","ready":false,"restartCount":0,"state":%s}]}}`, phase, state), metav1.PatchOptions{}, "status"))
		}
		report("Running", `{"running":{"startedAt":"2026-01-01T00:00:00Z"}}`)
		report("Failed", `{"running":{"startedAt":"2026-01-01T00:00:00Z"}}`)
		for _, way := range [][]string{nil, {"status"}} {
			Expect(framework.ErrorOf(pods.Patch(ctx, "lonely", types.StrategicMergePatchType, label("null"), metav1.PatchOptions{}, way...))).To(BeRefused("pod lonely keeps the label"), "%v", way)
		}
		report("Failed", `{"terminated":{"exitCode":1,"startedAt":"2026-01-01T00:00:00Z","finishedAt":"2026-01-01T00:00:01Z","containerID":"x://y"}}`)
		_, err := pods.Patch(ctx, "lonely", types.MergePatchType, label("null"), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "once no container runs")
		Expect(client.CoreV1().Pods(namespace).Delete(ctx, "lonely", *metav1.NewDeleteOptions(0))).To(Succeed())
	}, SpecTimeout(specTimeout))
})
