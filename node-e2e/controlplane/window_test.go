package controlplane

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// cacheWait covers the time until every replica of the webhook has an object in its
	// cache.
	cacheWait = 20 * time.Second
	// leaderWait covers the time until the leader has written a status or an entry. The
	// leader of an earlier spec may have ended without a release of its lease, which
	// expires after a minute.
	leaderWait = cacheWait + 70*time.Second
)

var (
	windowResource     = guardv1alpha1.GroupVersion.WithResource("operationwindows")
	nodePolicyResource = guardv1alpha1.GroupVersion.WithResource("nodedeletionpolicies")
)

// fromYAML reads an object.
func fromYAML(text string) *unstructured.Unstructured {
	GinkgoHelper()
	object := &unstructured.Unstructured{}
	Expect(yaml.Unmarshal([]byte(text), &object.Object)).To(Succeed(), text)
	return object
}

// daily is a weekly entry, in UTC, that starts and ends that long from now. Nobody's
// clock is changed: the window is where the time is.
func daily(from, to time.Duration) string {
	now := time.Now().UTC()
	return fmt.Sprintf(`{days: [Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday], from: "%s", to: "%s"}`,
		now.Add(from).Format("15:04"), now.Add(to).Format("15:04"))
}

// window is an OperationWindow with one weekly entry and more fields of its spec.
func window(name, weekly string, more ...string) *unstructured.Unstructured {
	GinkgoHelper()
	return fromYAML(fmt.Sprintf(`apiVersion: kubelet-guard.io/v1alpha1
kind: OperationWindow
metadata: {name: %s}
spec:
  timeZone: Etc/UTC
  weekly: [%s]
  %s
`, name, weekly, strings.Join(more, "\n  ")))
}

// createWindow creates the window as the ordinary user and waits until its status
// says that it is effective.
func createWindow(ctx context.Context, namespace string, object *unstructured.Unstructured) {
	GinkgoHelper()
	framework.Must(ordinary.dynamic().Resource(windowResource).Namespace(namespace).Create(ctx, object, metav1.CreateOptions{}))
	Eventually(ctx, func(g Gomega) {
		status := windowStatus(ctx, g, namespace, object.GetName())
		g.Expect(meta.IsStatusConditionTrue(status.Conditions, guardv1alpha1.OperationWindowEffective)).To(BeTrue(), "%+v", status)
	}).WithTimeout(leaderWait).Should(Succeed(), "OperationWindow %s to be effective", object.GetName())
}

func windowStatus(ctx context.Context, g Gomega, namespace, name string) guardv1alpha1.OperationWindowStatus {
	read := framework.Try(dynamicClient.Resource(windowResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})).In(g)
	return framework.Try(fromUnstructured[guardv1alpha1.OperationWindow](read)).In(g).Status
}

var _ = Describe("operation windows", func() {
	enforced := map[string]string{guardv1alpha1.OperationWindowsLabel: guardv1alpha1.OperationWindowsEnforced}
	const other = "localhost/guard/other:dev"
	setImage := func(ctx context.Context, u user, namespace string) framework.KubectlResult {
		return u.kubectl(ctx, "set", "image", "-n", namespace, "deployment/web", "workload="+other)
	}
	// opening is what a refusal says about the opening that is that long from now.
	opening := func(from time.Duration) string {
		return time.Now().UTC().Truncate(time.Minute).Add(from).Format(time.RFC3339)
	}

	It("refuse a change outside the window, name its fields and the next opening, and let the rest pass", func(ctx SpecContext) {
		namespace := newNamespace(ctx, enforced)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		next := opening(2 * time.Hour)
		createWindow(ctx, namespace, window("nightly", daily(2*time.Hour, 3*time.Hour), "outside: {fields: [Replicas]}"))

		refused := setImage(ctx, ordinary, namespace)
		Expect(refused.Err).To(HaveOccurred(), "%s", refused)
		Expect(refused.Stderr).To(And(
			ContainSubstring("deployment.apps/web in namespace "+namespace),
			ContainSubstring("spec.template.spec.containers[workload].image (Images)"),
			ContainSubstring("nightly is closed"), ContainSubstring(next),
			ContainSubstring("kubectl get operationwindows -n "+namespace)))
		By(strings.TrimSpace(refused.Stderr))

		deployments := ordinary.client().AppsV1().Deployments(namespace)
		_, err := deployments.Patch(ctx, "web", types.MergePatchType, []byte(`{"metadata":{"labels":{"note":"x"}}}`), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "a label of the Deployment")
		Expect(framework.ErrorOf(deployments.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"replicas":2,"minReadySeconds":1}}`), metav1.PatchOptions{}))).To(BeRefused("may not change now: spec.minReadySeconds."), "a field that may change with one that may not")
		Expect(framework.ErrorOf(deployments.Patch(ctx, "web", types.MergePatchType, []byte(`{"metadata":{"ownerReferences":[{"apiVersion":"unknown.example.com/v1","kind":"Owner","name":"x",`+
			`"uid":"00000000-0000-4000-8000-000000000000","controller":true}]},"spec":{"minReadySeconds":1}}`), metav1.PatchOptions{}))).To(BeRefused("may not change now: spec.minReadySeconds."), "with a controller that comes in the same request")

		By("the field that may change outside, directly and through /scale, and the controllers go on")
		ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=2").ExpectDone()
		Eventually(ctx, func(g Gomega) int32 {
			return framework.Try(deployments.Get(ctx, "web", metav1.GetOptions{})).In(g).Status.AvailableReplicas
		}).WithTimeout(podStart).Should(BeEquivalentTo(2), "available replicas after the change")

		status := windowStatus(ctx, Default, namespace, "nightly")
		Expect(status.State).To(Equal(guardv1alpha1.OperationWindowClosed))
		Expect(status.Until.UTC().Format(time.RFC3339)).To(Equal(next))
	}, SpecTimeout(specTimeout))

	It("hold everybody who scales, whatever the way", func(ctx SpecContext) {
		namespace := newNamespace(ctx, enforced)
		createDeployment(ctx, namespace, newDeployment("web", 1, map[string]string{"tier": "web"}))
		createDeployment(ctx, namespace, newDeployment("free", 1, nil))
		next := opening(2 * time.Hour)
		createWindow(ctx, namespace, window("nightly", daily(2*time.Hour, 3*time.Hour),
			"workloads: {kinds: [Deployment], selector: {matchLabels: {tier: web}}}"))

		ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=2").ExpectRefused("spec.replicas (Replicas)", next)
		Expect(framework.ErrorOf(autoscaler.client().AppsV1().Deployments(namespace).UpdateScale(ctx, "web",
			&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: 3}}, metav1.UpdateOptions{}))).To(BeRefused("deployments.apps/web", "spec.replicas (Replicas)"), "the autoscaler")
		ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/free", "--replicas=2").ExpectDone()

		By("the label and the spec in one request")
		Expect(framework.ErrorOf(ordinary.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"tier":null}},"spec":{"replicas":2}}`), metav1.PatchOptions{}))).To(BeRefused("spec.replicas"))

		By("a second window that is open adds to the first")
		createWindow(ctx, namespace, window("always-scale", daily(-time.Hour, time.Hour), "inside: {fields: [Replicas]}"))
		ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=2").ExpectDone()
		setImage(ctx, ordinary, namespace).ExpectRefused("always-scale is open, but not for them", "nightly is closed", next)
	}, SpecTimeout(specTimeout))

	It("hold a workload whatever its owner reference says, and let its Deployment's controller go on", func(ctx SpecContext) {
		namespace := newNamespace(ctx, enforced)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		set := workloads()["statefulsets.apps"]("db", 0, nil).(*appsv1.StatefulSet)
		owner := metav1.OwnerReference{APIVersion: "unknown.example.com/v1", Kind: "Database", Name: "db", UID: "00000000-0000-4000-8000-000000000000", Controller: new(true)}
		set.OwnerReferences = []metav1.OwnerReference{owner}
		framework.Must(client.AppsV1().StatefulSets(namespace).Create(ctx, set, metav1.CreateOptions{}))
		createWindow(ctx, namespace, window("nightly", daily(2*time.Hour, 3*time.Hour)))

		deployments := ordinary.client().AppsV1().Deployments(namespace)
		ca := framework.Must(client.CoreV1().ConfigMaps(namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{}))
		_, err := deployments.Patch(ctx, "web", types.MergePatchType, fmt.Appendf(nil,
			`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":%q,"uid":%q,"controller":true}]}}`, ca.Name, ca.UID), metav1.PatchOptions{})
		Expect(err).NotTo(HaveOccurred(), "an owner reference is no change of the spec")
		Expect(setImage(ctx, ordinary, namespace).Stderr).To(ContainSubstring("nightly is closed"))
		Expect(ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=0").Stderr).To(ContainSubstring("nightly is closed"))
		Expect(framework.ErrorOf(ordinary.client().AppsV1().StatefulSets(namespace).Patch(ctx, "db", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}))).To(BeRefused("nightly is closed"), "the StatefulSet of an operator")

		By("a change by override, which the deployment controller carries out")
		framework.Must(overrider.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType, fmt.Appendf(nil,
			`{"metadata":{"annotations":{%q:%q}},"spec":{"template":{"metadata":{"annotations":{"roll":"out"}}}}}`, annotationOverride, overrideFor(time.Hour, "INC-2")), metav1.PatchOptions{}))
		Eventually(ctx, func(g Gomega) {
			sets := framework.Try(client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})).In(g)
			g.Expect(sets.Items).To(ConsistOf(HaveField("Status.Replicas", BeZero()), HaveField("Status.AvailableReplicas", BeEquivalentTo(1))))
		}).WithTimeout(podStart).Should(Succeed(), "the roll-out")
	}, SpecTimeout(specTimeout))

	It("let a restart pass outside the window where its path may change", func(ctx SpecContext) {
		namespace := newNamespace(ctx, enforced)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		createWindow(ctx, namespace, window("nightly", daily(2*time.Hour, 3*time.Hour)))
		refused := ordinary.kubectl(ctx, "rollout", "restart", "-n", namespace, "deployment/web")
		const restarted = "spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]"
		Expect(refused.Stderr).To(ContainSubstring(restarted), "%s", refused)
		ordinary.kubectl(ctx, "patch", "operationwindow", "nightly", "-n", namespace, "--type=merge", "-p",
			fmt.Sprintf(`{"spec":{"outside":{"paths":[%q]}}}`, restarted)).ExpectDone()
		Eventually(ctx, func() error {
			return ordinary.kubectl(ctx, "rollout", "restart", "-n", namespace, "deployment/web").Err
		}).WithTimeout(cacheWait).Should(Succeed(), "a restart after the path was allowed")
	}, SpecTimeout(specTimeout))

	It("open by themselves", func(ctx SpecContext) {
		namespace := newNamespace(ctx, enforced)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		// Two minutes ahead is at least one whole minute, in which the window is effective.
		next := time.Now().UTC().Truncate(time.Minute).Add(2 * time.Minute)
		createWindow(ctx, namespace, window("soon", daily(2*time.Minute, time.Hour)))
		setImage(ctx, ordinary, namespace).ExpectRefused(next.Format(time.RFC3339))
		Eventually(ctx, func() error { return setImage(ctx, ordinary, namespace).Err }).
			WithTimeout(time.Until(next)+cacheWait).WithPolling(time.Second).Should(Succeed(), "the change to pass at %s", next)
		Expect(time.Now()).To(BeTemporally(">=", next))
		Eventually(ctx, func(g Gomega) {
			g.Expect(windowStatus(ctx, g, namespace, "soon").State).To(Equal(guardv1alpha1.OperationWindowOpen))
		}).WithTimeout(leaderWait).Should(Succeed(), "the status to say Open")
	}, SpecTimeout(2*specTimeout))

	It("say that they have no effect, and how to give them one", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		command := "kubectl label namespace " + namespace + " kubelet-guard.io/operation-windows=enforced"
		file := window("nightly", daily(2*time.Hour, 3*time.Hour))
		created := kubectlInput(ctx, string(framework.Must(yaml.Marshal(file.Object))), "create", "-n", namespace, "-f", "-").ExpectDone()
		Expect(created.Stderr).To(And(HavePrefix("Warning:"), ContainSubstring(command)))
		Eventually(ctx, func(g Gomega) {
			effective := meta.FindStatusCondition(windowStatus(ctx, g, namespace, "nightly").Conditions, guardv1alpha1.OperationWindowEffective)
			g.Expect(effective).NotTo(BeNil())
			g.Expect(effective.Status).To(Equal(metav1.ConditionFalse))
			g.Expect(effective.Message).To(ContainSubstring(command))
		}).WithTimeout(leaderWait).Should(Succeed(), "the condition Effective")
		ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=2").ExpectDone()

		ordinary.shell(ctx, command)
		Eventually(ctx, func(g Gomega) {
			g.Expect(ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=3").Stderr).To(ContainSubstring("nightly is closed"))
			g.Expect(meta.IsStatusConditionTrue(windowStatus(ctx, g, namespace, "nightly").Conditions, guardv1alpha1.OperationWindowEffective)).To(BeTrue())
		}).WithTimeout(leaderWait).Should(Succeed(), "the window to be effective after the command")
	}, SpecTimeout(specTimeout))

	It("can be overridden by who may", func(ctx SpecContext) {
		namespace := newNamespace(ctx, enforced)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		createWindow(ctx, namespace, window("nightly", daily(2*time.Hour, 3*time.Hour)))
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}},"spec":{"minReadySeconds":1}}`, annotationOverride, overrideFor(time.Hour, "INC-1"))
		Expect(framework.ErrorOf(ordinary.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{}))).To(BeRefused("spec.minReadySeconds"))
		framework.Must(overrider.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{}))
		By("through /scale, by the annotation of the Deployment")
		overrider.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=2").ExpectDone()
	}, SpecTimeout(specTimeout))
})

var _ = Describe("operation windows in an outage of the webhook", Label(labelOutage), Serial, func() {
	It("hold changes in namespaces that chose them, and nothing else", func(ctx SpecContext) {
		chosen := newNamespace(ctx, map[string]string{guardv1alpha1.OperationWindowsLabel: guardv1alpha1.OperationWindowsEnforced})
		other := newNamespace(ctx, nil)
		for _, namespace := range []string{chosen, other} {
			createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		}
		stopWebhook(ctx)

		ordinary.kubectl(ctx, "scale", "-n", chosen, "deployment/web", "--replicas=2").ExpectRefused(`failed calling webhook "operation-window.kubelet-guard.io"`)
		ordinary.kubectl(ctx, "label", "-n", chosen, "deployment/web", "note=x").ExpectDone()
		ordinary.kubectl(ctx, "scale", "-n", other, "deployment/web", "--replicas=2").ExpectDone()
		By("controllers in the namespace that chose them: a pod is replaced, a new Deployment comes up")
		ordinary.kubectl(ctx, "delete", "pods", "-n", chosen, "-l", "app=web").ExpectDone()
		createDeployment(ctx, chosen, newDeployment("new", 1, nil))
		Eventually(ctx, func(g Gomega) int32 {
			return framework.Try(client.AppsV1().Deployments(chosen).Get(ctx, "web", metav1.GetOptions{})).In(g).Status.AvailableReplicas
		}).WithTimeout(podStart).Should(BeEquivalentTo(1), "the replaced pod")
		By("the way out without the webhook")
		ordinary.kubectl(ctx, "label", "namespace", chosen, guardv1alpha1.OperationWindowsLabel+"-").ExpectDone()
		Eventually(ctx, func() error {
			return ordinary.kubectl(ctx, "scale", "-n", chosen, "deployment/web", "--replicas=2").Err
		}).WithTimeout(cacheWait).Should(Succeed(), "the change after the label is gone")
	}, SpecTimeout(clusterStart))
})

var _ = Describe("a configuration that makes no sense is refused when it is applied", func() {
	refusedAt := func(ctx context.Context, object *unstructured.Unstructured, field string) {
		GinkgoHelper()
		var err error
		options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
		if object.GetKind() == guardv1alpha1.OperationWindowKind {
			_, err = ordinary.dynamic().Resource(windowResource).Namespace(metav1.NamespaceDefault).Create(ctx, object, options)
		} else {
			_, err = ordinary.dynamic().Resource(nodePolicyResource).Create(ctx, object, options)
		}
		Expect(err).To(Satisfy(apierrors.IsInvalid), "%v", err)
		Expect(err.Error()).To(ContainSubstring(field))
		By(err.Error())
	}
	every := daily(time.Hour, 2*time.Hour)

	DescribeTable("OperationWindow",
		func(ctx SpecContext, field, spec string) {
			refusedAt(ctx, fromYAML(fmt.Sprintf("{apiVersion: kubelet-guard.io/v1alpha1, kind: OperationWindow, metadata: {name: bad}, spec: %s}", spec)), field)
		},
		Entry("no time zone", SpecTimeout(specTimeout), "spec.timeZone", "{weekly: ["+every+"]}"),
		Entry("a zone that does not exist", SpecTimeout(specTimeout), "spec.timeZone", "{timeZone: Europe/Atlantis, weekly: ["+every+"]}"),
		Entry("no entry", SpecTimeout(specTimeout), "weekly or cron", "{timeZone: Etc/UTC}"),
		Entry("an hour that does not exist", SpecTimeout(specTimeout), "spec.weekly[0].from", `{timeZone: Etc/UTC, weekly: [{days: [Monday], from: "25:00", to: "26:00"}]}`),
		Entry("a window without length", SpecTimeout(specTimeout), "spec.weekly[0]", `{timeZone: Etc/UTC, weekly: [{days: [Monday], from: "10:00", to: "10:00"}]}`),
		Entry("a day that does not exist", SpecTimeout(specTimeout), "spec.weekly[0].days[0]", `{timeZone: Etc/UTC, weekly: [{days: [Mon], from: "10:00", to: "11:00"}]}`),
		Entry("only the 30th of February", SpecTimeout(specTimeout), "spec.cron[0].schedule", `{timeZone: Etc/UTC, cron: [{schedule: "0 0 30 2 *", duration: 1h}]}`),
		Entry("a broken cron schedule", SpecTimeout(specTimeout), "spec.cron[0].schedule", `{timeZone: Etc/UTC, cron: [{schedule: "0 0 32 * *", duration: 1h}]}`),
		Entry("a time zone in the schedule", SpecTimeout(specTimeout), "spec.cron[0].schedule", `{timeZone: Etc/UTC, cron: [{schedule: "TZ=Etc/UTC 0 0 1 * *", duration: 1h}]}`),
		Entry("a negative duration", SpecTimeout(specTimeout), "spec.cron[0].duration", `{timeZone: Etc/UTC, cron: [{schedule: "0 0 1 * *", duration: -1h}]}`),
		Entry("a duration of no time", SpecTimeout(specTimeout), "spec.cron[0].duration", `{timeZone: Etc/UTC, cron: [{schedule: "0 0 1 * *", duration: 1s}]}`),
		Entry("a date that does not exist", SpecTimeout(specTimeout), "spec.excludedDates[0]", `{timeZone: Etc/UTC, weekly: [`+every+`], excludedDates: ["2026-02-30"]}`),
		Entry("a category that does not exist", SpecTimeout(specTimeout), "spec.inside.fields[0]", `{timeZone: Etc/UTC, weekly: [`+every+`], inside: {fields: [Labels]}}`),
		Entry("a path outside spec", SpecTimeout(specTimeout), "spec.outside.paths[0]", `{timeZone: Etc/UTC, weekly: [`+every+`], outside: {paths: [metadata.labels]}}`),
		Entry("a broken path", SpecTimeout(specTimeout), "spec.outside.paths[0]", `{timeZone: Etc/UTC, weekly: [`+every+`], outside: {paths: ["spec.template[x"]}}`),
		Entry("a broken selector", SpecTimeout(specTimeout), "spec.workloads.selector.matchExpressions[0].operator", `{timeZone: Etc/UTC, weekly: [`+every+`], workloads: {selector: {matchExpressions: [{key: a, operator: Like}]}}}`),
	)

	DescribeTable("NodeDeletionPolicy",
		func(ctx SpecContext, field, spec string) {
			refusedAt(ctx, fromYAML(fmt.Sprintf("{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: bad}, spec: %s}", spec)), field)
		},
		Entry("no pool", SpecTimeout(specTimeout), "spec.nodeSelector", "{maxDeletions: 1}"),
		Entry("a negative limit", SpecTimeout(specTimeout), "spec.maxDeletions", "{nodeSelector: {}, maxDeletions: -1}"),
		Entry("no limit at all", SpecTimeout(specTimeout), "maxDeletions, minReady or both", "{nodeSelector: {}}"),
		Entry("a negative period", SpecTimeout(specTimeout), "spec.period", "{nodeSelector: {}, maxDeletions: 1, period: -1h}"),
		Entry("a period of no time", SpecTimeout(specTimeout), "spec.period", "{nodeSelector: {}, maxDeletions: 1, period: 0s}"),
		Entry("a negative floor", SpecTimeout(specTimeout), "spec.minReady", "{nodeSelector: {}, minReady: -1}"),
		Entry("more than all", SpecTimeout(specTimeout), "spec.minReady", "{nodeSelector: {}, minReady: 101%}"),
		Entry("a broken selector", SpecTimeout(specTimeout), "spec.nodeSelector.matchLabels", "{nodeSelector: {matchLabels: {a: -b-}}, maxDeletions: 1}"),
	)

	It("NodeDeletionPolicy of the pool that another one has", func(ctx SpecContext) {
		policy := fromYAML("{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: first}, spec: {nodeSelector: {matchLabels: {pool: same}}, maxDeletions: 1}}")
		createNodePolicy(ctx, policy)
		refusedAt(ctx, fromYAML("{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: second}, spec: {nodeSelector: {matchExpressions: [{key: pool, operator: In, values: [same]}]}, maxDeletions: 5}}"),
			"NodeDeletionPolicy first has the same selector")
	}, SpecTimeout(specTimeout))
})
