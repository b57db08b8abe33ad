package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// poolLabel distinguishes the pools of the specs.
const poolLabel = "kubelet-guard-e2e/pool"

// nodeController is the real identity of the controller that deletes nodes whose
// machines are gone.
var nodeController = controller("node-controller")

// unthrottled is client without the limit that a client puts on itself.
func (u user) unthrottled() kubernetes.Interface {
	config := u.config()
	config.QPS = -1
	return kubernetes.NewForConfigOrDie(config)
}

// administrator is client without that limit.
func administrator() kubernetes.Interface {
	config := rest.CopyConfig(adminConfig)
	config.QPS = -1
	return kubernetes.NewForConfigOrDie(config)
}

// createPool creates Node objects of a pool of that name, without machines. The first
// ones say that they are ready; the controller manager believes it for 50 seconds
// after that, in which a spec has to be done with them.
func createPool(ctx context.Context, pool string, nodes, ready int) {
	GinkgoHelper()
	admin := administrator()
	// An attempt before this one may have left nodes.
	removePool(ctx, pool)
	DeferCleanup(removePool, pool, NodeTimeout(podStart))
	errs := make([]error, nodes)
	workqueue.ParallelizeUntil(ctx, 8, nodes, func(i int) {
		status := corev1.ConditionFalse
		if i < ready {
			status = corev1.ConditionTrue
		}
		_, errs[i] = admin.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%03d", pool, i), Labels: map[string]string{poolLabel: pool}},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: status, Reason: "Spec", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
			}}},
		}, metav1.CreateOptions{})
	})
	Expect(errs).To(HaveEach(BeNil()))
}

// removePool deletes the nodes of the pool. Its policy must be gone.
func removePool(ctx context.Context, pool string) {
	GinkgoHelper()
	Eventually(ctx, func() error {
		return administrator().CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: poolLabel + "=" + pool})
	}).WithTimeout(podStart).Should(Succeed())
}

func nodesOf(ctx context.Context, pool string) []corev1.Node {
	GinkgoHelper()
	return framework.Must(client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: poolLabel + "=" + pool})).Items
}

// nodePolicy is a NodeDeletionPolicy of a pool with more fields of its spec.
func nodePolicy(name, pool, more string) *unstructured.Unstructured {
	GinkgoHelper()
	return fromYAML(fmt.Sprintf(`{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: %s},
spec: {nodeSelector: {matchLabels: {%s: %s}}, %s}}`, name, poolLabel, pool, more))
}

// createNodePolicy creates the policy, and waits until the webhook knows it and, if
// there are nodes, counts them.
func createNodePolicy(ctx context.Context, policy *unstructured.Unstructured) {
	GinkgoHelper()
	addNodePolicy(ctx, policy)
	Eventually(ctx, func(g Gomega) {
		status := nodePolicyStatus(ctx, g, policy.GetName())
		g.Expect(status.Conditions).NotTo(BeEmpty(), "conditions in the status")
	}).WithTimeout(leaderWait).Should(Succeed(), "the status of NodeDeletionPolicy %s", policy.GetName())
}

// addNodePolicy creates the policy as the ordinary user. At the end of the spec it goes
// before the nodes.
func addNodePolicy(ctx context.Context, policy *unstructured.Unstructured) {
	GinkgoHelper()
	framework.Must(ordinary.dynamic().Resource(nodePolicyResource).Create(ctx, policy, metav1.CreateOptions{}))
	DeferCleanup(func(ctx SpecContext) error {
		return dynamicClient.Resource(nodePolicyResource).Delete(ctx, policy.GetName(), metav1.DeleteOptions{})
	}, NodeTimeout(podStart))
}

// awaitReadyNodes waits until the status of the policy says how many nodes are ready.
func awaitReadyNodes(ctx context.Context, policy string, nodes int) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		g.Expect(nodePolicyStatus(ctx, g, policy).ReadyNodes).To(BeEquivalentTo(nodes))
	}).WithTimeout(leaderWait).Should(Succeed(), "ready nodes in the status")
}

func nodePolicyStatus(ctx context.Context, g Gomega, name string) guardv1alpha1.NodeDeletionPolicyStatus {
	read := framework.Try(dynamicClient.Resource(nodePolicyResource).Get(ctx, name, metav1.GetOptions{})).In(g)
	return framework.Try(fromUnstructured[guardv1alpha1.NodeDeletionPolicy](read)).In(g).Status
}

var _ = Describe("node deletion policies", func() {
	dryRun := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}

	It("stop the deletion of 300 nodes in a loop at the limit", func(ctx SpecContext) {
		const pool, nodes, limit = "loop", 300, 20
		createPool(ctx, pool, nodes, nodes)
		createNodePolicy(ctx, nodePolicy(pool, pool, fmt.Sprintf("maxDeletions: %d, period: 1h", limit)))
		started := time.Now()
		looping := ordinary.unthrottled()
		deleted, refused := 0, error(nil)
		for i := range nodes {
			err := looping.CoreV1().Nodes().Delete(ctx, fmt.Sprintf("%s-%03d", pool, i), metav1.DeleteOptions{})
			if err == nil {
				deleted++
				continue
			}
			Expect(err).To(BeRefused(fmt.Sprintf("NodeDeletionPolicy %s limits deletions to %d in 1h", pool, limit), "The next is allowed at "))
			refused = err
		}
		By(fmt.Sprintf("%d of %d deleted in %s; then: %v", deleted, nodes, time.Since(started).Round(time.Millisecond), refused))
		Expect(deleted).To(Equal(limit))
		Expect(nodesOf(ctx, pool)).To(HaveLen(nodes - limit))
		status := nodePolicyStatus(ctx, Default, pool)
		Expect(status.Deletions).To(HaveLen(limit))
		Expect(status.Deletions[0].User).To(Equal(ordinary.name))
		_, next, _ := strings.Cut(refused.Error(), "The next is allowed at ")
		next, _, _ = strings.Cut(next, ",")
		at := framework.Must(time.Parse(time.RFC3339, next))
		// It is reported in whole seconds, rounded up.
		Expect(at).To(BeTemporally("~", status.Deletions[0].Time.Add(time.Hour), 2*time.Second), "the time of the next")

		By("kubectl delete nodes, DELETECOLLECTION and the node controller stop there too")
		ordinary.kubectl(ctx, "delete", "nodes", "-l", poolLabel+"="+pool, "--wait=false").ExpectRefused("limits deletions to 20 in 1h")
		err := looping.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: poolLabel + "=" + pool})
		Expect(err).To(BeRefused("limits deletions to 20 in 1h"))
		err = nodeController.client().CoreV1().Nodes().Delete(ctx, pool+"-299", metav1.DeleteOptions{})
		Expect(err).To(BeRefused("limits deletions to 20 in 1h"))
		Expect(nodesOf(ctx, pool)).To(HaveLen(nodes - limit))

		By("both replicas of the webhook restart, and remember")
		kubectl(ctx, "delete", "pods", "-n", guardNamespace, "-l", webhookSelector, "--wait=true").ExpectDone()
		awaitWebhook(ctx)
		err = looping.CoreV1().Nodes().Delete(ctx, pool+"-298", metav1.DeleteOptions{})
		Expect(err).To(BeRefused("limits deletions to 20 in 1h"))

		By("overriding, as a user who may")
		ordinary.kubectl(ctx, "annotate", "node", pool+"-297", annotationOverride+"="+overrideFor(time.Hour, "INC-2")).ExpectDone()
		Expect(overrider.client().CoreV1().Nodes().Delete(ctx, pool+"-297", metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(2*specTimeout))

	It("hold the floor of ready nodes when eight delete 300 at once", func(ctx SpecContext) {
		const pool, nodes = "floor", 300
		createPool(ctx, pool, nodes, nodes)
		createNodePolicy(ctx, nodePolicy(pool, pool, `minReady: 95%`))
		awaitReadyNodes(ctx, pool, nodes)
		errs := make([]error, nodes)
		started := time.Now()
		clients := []kubernetes.Interface{ordinary.unthrottled(), ordinary.unthrottled()}
		workqueue.ParallelizeUntil(ctx, 8, nodes, func(i int) {
			errs[i] = clients[i%2].CoreV1().Nodes().Delete(ctx, fmt.Sprintf("%s-%03d", pool, i), metav1.DeleteOptions{})
		})
		deleted := 0
		for _, err := range errs {
			if err == nil {
				deleted++
				continue
			}
			Expect(err).To(BeRefused("NodeDeletionPolicy floor keeps 285 nodes of its pool ready"))
		}
		By(fmt.Sprintf("%d of %d deleted in %s", deleted, nodes, time.Since(started).Round(time.Millisecond)))
		Expect(deleted).To(Equal(15))
		Expect(nodesOf(ctx, pool)).To(HaveLen(285))
	}, SpecTimeout(specTimeout))

	It("charge what is deleted, once, and nothing else", func(ctx SpecContext) {
		const pool = "charge"
		createPool(ctx, pool, 6, 4)
		createNodePolicy(ctx, nodePolicy("charge-a", pool, "maxDeletions: 2, period: 1h, minReady: 3"))
		createNodePolicy(ctx, fromYAML(fmt.Sprintf(`{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: charge-b},
spec: {nodeSelector: {matchExpressions: [{key: %s, operator: In, values: [charge, other]}]}, maxDeletions: 3}}`, poolLabel)))
		nodes := ordinary.client().CoreV1().Nodes()
		charged := func() []int {
			return []int{len(nodePolicyStatus(ctx, Default, "charge-a").Deletions), len(nodePolicyStatus(ctx, Default, "charge-b").Deletions)}
		}
		Expect(nodes.Delete(ctx, pool+"-000", dryRun)).To(Succeed())
		Expect(charged()).To(Equal([]int{0, 0}), "after a dry run")

		framework.Must(client.CoreV1().Nodes().Patch(ctx, pool+"-000", types.MergePatchType, []byte(`{"metadata":{"finalizers":["kubelet-guard-e2e/stays"]}}`), metav1.PatchOptions{}))
		for range 3 {
			Expect(nodes.Delete(ctx, pool+"-000", metav1.DeleteOptions{})).To(Succeed())
		}
		Expect(charged()).To(Equal([]int{1, 1}), "after three deletions of one node that a finalizer keeps")
		framework.Must(client.CoreV1().Nodes().Patch(ctx, pool+"-000", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}))

		Expect(nodes.Delete(ctx, pool+"-001", metav1.DeleteOptions{})).To(BeRefused("charge-a keeps 3 nodes of its pool ready, and only 3 are"))
		Expect(charged()).To(Equal([]int{1, 1}), "after a refusal")
		Expect(nodeController.client().CoreV1().Nodes().Delete(ctx, pool+"-005", metav1.DeleteOptions{})).To(Succeed(), "a node that is not ready, by the node controller")
		Expect(charged()).To(Equal([]int{2, 2}))
		Expect(nodes.Delete(ctx, pool+"-004", dryRun)).To(BeRefused("charge-a limits deletions to 2 in 1h"), "a dry run at the limit")
		Eventually(ctx, func(g Gomega) {
			status := nodePolicyStatus(ctx, g, "charge-a")
			g.Expect([]int32{status.Nodes, status.ReadyNodes, status.DeletionsAllowed}).To(Equal([]int32{4, 3, 0}), "nodes, ready, allowed")
		}).WithTimeout(leaderWait).Should(Succeed(), "the status")
		By(strings.TrimSpace(ordinary.kubectl(ctx, "get", "nodedeletionpolicies").ExpectDone().Stdout))
	}, SpecTimeout(specTimeout))

	It("let nodes go that no policy selects", func(ctx SpecContext) {
		const pool = "free"
		createPool(ctx, pool, 3, 3)
		createNodePolicy(ctx, nodePolicy("elsewhere", "elsewhere", "maxDeletions: 0"))
		Expect(ordinary.client().CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: poolLabel + "=" + pool})).To(Succeed())
		Expect(framework.ErrorOf(client.CoreV1().Nodes().Get(ctx, pool+"-000", metav1.GetOptions{}))).To(BeNotFound())
	}, SpecTimeout(specTimeout))

	It("hold the last ready node with its kubelet", func(ctx SpecContext) {
		policy := fromYAML(fmt.Sprintf(`{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: real},
spec: {nodeSelector: {matchLabels: {kubernetes.io/hostname: %s}}, minReady: 100%%}}`, cluster.NodeName()))
		createNodePolicy(ctx, policy)
		ordinary.kubectl(ctx, "delete", "node", cluster.NodeName(), "--wait=false").ExpectRefused("NodeDeletionPolicy real keeps 1 nodes of its pool ready, and only 1 are")
		framework.Must(client.CoreV1().Nodes().Get(ctx, cluster.NodeName(), metav1.GetOptions{}))
	}, SpecTimeout(specTimeout))
})

// setReady sets the condition Ready of a Node object without a machine.
func setReady(ctx context.Context, status corev1.ConditionStatus, names ...string) {
	GinkgoHelper()
	for _, name := range names {
		framework.Must(client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, fmt.Appendf(nil,
			`{"status":{"conditions":[{"type":"Ready","status":%q,"reason":"Spec","lastHeartbeatTime":%q}]}}`, status, time.Now().UTC().Format(time.RFC3339)), metav1.PatchOptions{}, "status"))
	}
}

// numbered are the names of some nodes of a pool.
func numbered(pool string, from, to int) []string {
	var names []string
	for i := from; i <= to; i++ {
		names = append(names, fmt.Sprintf("%s-%03d", pool, i))
	}
	return names
}

var _ = Describe("node deletion policies, when nodes fail or change", func() {
	It("keep a pool whose nodes are not ready any more, all but two dead ones", func(ctx SpecContext) {
		const pool = "mass"
		createPool(ctx, pool, 10, 10)
		createNodePolicy(ctx, nodePolicy(pool, pool, "minReady: 90%"))
		awaitReadyNodes(ctx, pool, 10)
		as := ordinary.unthrottled().CoreV1().Nodes()
		Expect(as.Delete(ctx, pool+"-000", metav1.DeleteOptions{})).To(Succeed())
		setReady(ctx, corev1.ConditionUnknown, numbered(pool, 1, 9)...)
		awaitReadyNodes(ctx, pool, 0)
		var refusal error
		for _, name := range numbered(pool, 1, 9) {
			refusal = as.Delete(ctx, name, metav1.DeleteOptions{})
			Expect(refusal).To(BeRefused("keeps 9 nodes of its pool ready, and only 0 are; 9 of 9 are not ready, which looks like a mass failure"))
			Expect(nodeController.unthrottled().CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})).To(BeRefused("looks like a mass failure"))
		}
		Expect(nodesOf(ctx, pool)).To(HaveLen(9))

		By("an override lets one go")
		ordinary.kubectl(ctx, "annotate", "node", pool+"-009", annotationOverride+"="+overrideFor(time.Hour, "INC-3")).ExpectDone()
		Expect(overrider.client().CoreV1().Nodes().Delete(ctx, pool+"-009", metav1.DeleteOptions{})).To(Succeed())

		By("two that are dead go when the others are ready again")
		setReady(ctx, corev1.ConditionTrue, numbered(pool, 3, 8)...)
		awaitReadyNodes(ctx, pool, 6)
		Expect(nodeController.client().CoreV1().Nodes().Delete(ctx, pool+"-001", metav1.DeleteOptions{})).To(Succeed())
		Expect(as.Delete(ctx, pool+"-002", metav1.DeleteOptions{})).To(Succeed())
		Expect(as.Delete(ctx, pool+"-003", metav1.DeleteOptions{})).To(BeRefused("keeps 9 nodes of its pool ready, and only 6 are"), "a ready one")

		By("the next step of the refusal is what it says")
		setReady(ctx, corev1.ConditionUnknown, numbered(pool, 3, 8)...)
		awaitReadyNodes(ctx, pool, 0)
		ordinary.followAdvice(ctx, as.Delete(ctx, pool+"-004", metav1.DeleteOptions{}))
		Expect(as.Delete(ctx, pool+"-004", metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("are not frozen by a deletion of the next day, and say that a clock is wrong", func(ctx SpecContext) {
		const pool = "clock"
		createPool(ctx, pool, 2, 2)
		createNodePolicy(ctx, nodePolicy(pool, pool, "maxDeletions: 1, period: 1h"))
		tomorrow := time.Now().Add(24 * time.Hour).UTC()
		framework.Must(dynamicClient.Resource(nodePolicyResource).Patch(ctx, pool, types.MergePatchType, fmt.Appendf(nil,
			`{"status":{"deletions":[{"uid":"gone","node":"gone","time":%q}]}}`, tomorrow.Format("2006-01-02T15:04:05.000000Z")), metav1.PatchOptions{}, "status"))
		refusal := ordinary.client().CoreV1().Nodes().Delete(ctx, pool+"-000", metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused("limits deletions to 1 in 1h", "A clock is or was wrong"))
		Eventually(ctx, func(g Gomega) {
			status := nodePolicyStatus(ctx, g, pool)
			g.Expect(status.Deletions).To(HaveLen(1))
			g.Expect(status.Deletions[0].WrittenTime).NotTo(BeNil())
			g.Expect(status.Deletions[0].WrittenTime.Time).To(BeTemporally("~", tomorrow, time.Second))
			g.Expect(status.NextDeletionExpires.Time).To(BeTemporally("~", time.Now().Add(time.Hour), time.Minute))
		}).WithTimeout(leaderWait).Should(Succeed(), "the status")
		Expect(ordinary.client().CoreV1().Nodes().Delete(ctx, pool+"-000", metav1.DeleteOptions{})).To(BeRefused("limits deletions to 1 in 1h", "A clock is or was wrong"))
	}, SpecTimeout(specTimeout))

	It("select as label selectors do, in CEL, also in an outage", Label(labelOutage), Serial, func(ctx SpecContext) {
		const pool = "semantics"
		DeferCleanup(removePool, pool, NodeTimeout(podStart))
		selectors := make([]metav1.LabelSelector, 0, 6)
		key := func(i int) string { return fmt.Sprintf("kubelet-guard-e2e/key-%d", i) }
		for i, text := range []string{"%s=a", "%s in (a,b)", "%s notin (a,b)", "%s", "!%s", "%s in (,b)"} {
			selector := framework.Must(metav1.ParseToLabelSelector(fmt.Sprintf(text, key(i)) + "," + poolLabel + "=" + pool))
			selectors = append(selectors, *selector)
			addNodePolicy(ctx, toUnstructured(&guardv1alpha1.NodeDeletionPolicy{
				TypeMeta:   metav1.TypeMeta{APIVersion: guardv1alpha1.GroupVersion.String(), Kind: guardv1alpha1.NodeDeletionPolicyKind},
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", pool, i)},
				Spec:       guardv1alpha1.NodeDeletionPolicySpec{NodeSelector: *selector, MaxDeletions: new(int32(9))},
			}))
		}
		selects := func(i int, set map[string]string) bool {
			return framework.Must(metav1.LabelSelectorAsSelector(&selectors[i])).Matches(labels.Set(set))
		}
		// A node for each policy and value, which that policy alone can select.
		sets := map[string]map[string]string{}
		labelled := func(set map[string]string, key, value string) map[string]string {
			set = maps.Clone(set)
			delete(set, key)
			if value != "absent" {
				set[key] = value
			}
			return set
		}
		tried := []string{"absent", "", "a", "b", "c"}
		for i := range selectors {
			for v, value := range tried {
				set := map[string]string{poolLabel: pool, key(2): "a", key(4): "x"}
				set = labelled(set, key(i), value)
				name := fmt.Sprintf("%s-%d-%d", pool, i, v)
				sets[name] = set
				framework.Must(client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: set}}, metav1.CreateOptions{}))
			}
		}
		Eventually(ctx, func(g Gomega) {
			configuration := framework.Try(client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, webhookinstall.Configuration, metav1.GetOptions{})).In(g)
			g.Expect(fmt.Sprint(configuration.Webhooks)).To(ContainSubstring(key(len(selectors) - 1)))
		}).WithTimeout(leaderWait).Should(Succeed(), "the entry of the pools")

		as := ordinary.unthrottled().CoreV1().Nodes()
		refused := map[bool]int{}
		for i := range selectors {
			for v := range tried {
				name := fmt.Sprintf("%s-%d-%d", pool, i, v)
				for _, value := range tried {
					after, patched := labelled(sets[name], key(i), value), any(value)
					if value == "absent" {
						patched = nil
					}
					body := framework.Must(json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{key(i): patched}}}))
					_, err := as.Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
					leaves := selects(i, sets[name]) && !selects(i, after)
					refused[leaves]++
					if leaves {
						Expect(err).To(BeRefused(fmt.Sprintf("out of the pool of NodeDeletionPolicy %s-%d", pool, i)), "%v to %v", sets[name], after)
					} else {
						Expect(err).NotTo(HaveOccurred(), "%v to %v", sets[name], after)
					}
				}
			}
		}
		Expect(refused[true]).To(BeNumerically(">", 10))

		By("stopping the webhook")
		stopWebhook(ctx)
		for name, set := range sets {
			held := false
			for i := range selectors {
				held = held || selects(i, set)
			}
			err := as.Delete(ctx, name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
			if held {
				Expect(err).To(MatchError(ContainSubstring(`failed calling webhook "pool.node-deletion.kubelet-guard.io"`)), "%v", set)
			} else {
				Expect(err).NotTo(HaveOccurred(), "%v", set)
			}
		}
	}, SpecTimeout(clusterStart))

	It("keep their nodes when someone takes the label off", Label(labelPolicies), func(ctx SpecContext) {
		const pool, node = "leaving", "leaving-000"
		createPool(ctx, pool, 3, 3)
		addNodePolicy(ctx, fromYAML(fmt.Sprintf(`{apiVersion: kubelet-guard.io/v1alpha1, kind: NodeDeletionPolicy, metadata: {name: %s},
spec: {nodeSelector: {matchExpressions: [{key: %s, operator: In, values: [leaving, staying]}]}, minReady: 100%%}}`, pool, poolLabel)))
		relabel := func(u user, node, value string, subresources ...string) error {
			return framework.ErrorOf(u.client().CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, poolLabel, value), metav1.PatchOptions{}, subresources...))
		}
		dryRun := func() error {
			return framework.ErrorOf(ordinary.client().CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:null}}}`, poolLabel), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}))
		}
		Eventually(ctx, dryRun).WithTimeout(policyWait).Should(BeRefused("the labels of node/" + node + " were not changed"))
		refusal := relabel(ordinary, node, "null")
		Expect(refusal).To(BeRefused("they take it out of the pool of NodeDeletionPolicy "+pool, "override"))
		Expect(relabel(ordinary, node, `"elsewhere"`)).To(BeRefused("out of the pool"), "another pool")
		Expect(relabel(ordinary, node, "null", "status")).To(BeRefused("out of the pool"), "by way of the status")
		Expect(relabel(nodeController, node, "null")).To(BeRefused("out of the pool"), "by a controller")
		Expect(relabel(ordinary, node, `"staying"`)).To(Succeed(), "within the pool")

		By("an override, by who may")
		ordinary.followAdvice(ctx, refusal)
		Expect(relabel(ordinary, node, "null")).To(BeRefused("out of the pool"))
		Expect(relabel(overrider, node, "null")).To(Succeed())
		Expect(relabel(ordinary, node, `"leaving"`)).To(Succeed(), "back into the pool")
		Expect(relabel(nodeUser("leaving-001"), "leaving-001", "null", "status")).To(Succeed(), "its own kubelet")
		Expect(relabel(ordinary, "leaving-001", `"leaving"`)).To(Succeed(), "for the clean-up")
	}, SpecTimeout(specTimeout))
})

var _ = Describe("two rules in audit mode next to others that enforce", Label(labelInstall), Serial, func() {
	It("warn with the same decision and let the request pass", func(ctx SpecContext) {
		usual := framework.Must(client.AppsV1().Deployments(guardNamespace).Get(ctx, webhookName, metav1.GetOptions{})).Spec.Template.Spec.Containers[0].Args
		setArguments := func(ctx context.Context, arguments ...string) {
			GinkgoHelper()
			kubectl(ctx, "patch", "deployment", webhookName, "-n", guardNamespace, "--type=json", "-p",
				fmt.Sprintf(`[{"op":"replace","path":"/spec/template/spec/containers/0/args","value":%s}]`, framework.Must(json.Marshal(arguments)))).ExpectDone()
			awaitWebhook(ctx)
		}
		DeferCleanup(func(ctx SpecContext) { setArguments(ctx, usual...) }, NodeTimeout(clusterStart))
		setArguments(ctx, append(slices.Clone(usual), "--rule-mode=OperationWindow=Audit,NodeDeletion=Audit")...)

		const pool = "audit"
		createPool(ctx, pool, 1, 1)
		createNodePolicy(ctx, nodePolicy(pool, pool, "maxDeletions: 0"))
		since := time.Now()
		as, warnings := ordinary.warned()
		Expect(as.CoreV1().Nodes().Delete(ctx, pool+"-000", metav1.DeleteOptions{})).To(Succeed())
		Expect(warnings.all()).To(ContainElement(And(ContainSubstring("lets no node be deleted"), ContainSubstring("audit mode"))))
		entry := auditEntry(ctx, since, "the deletion of the node", func(e auditv1.Event) bool {
			return e.Verb == "delete" && e.ObjectRef.Name == pool+"-000"
		})
		Expect(entry.Annotations).To(HaveKeyWithValue("node-deletion.kubelet-guard.io/NodeDeletion", HavePrefix("Audit Refused NodeLimit: ")))

		namespace := newNamespace(ctx, map[string]string{guardv1alpha1.OperationWindowsLabel: guardv1alpha1.OperationWindowsEnforced})
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		framework.Must(ordinary.dynamic().Resource(windowResource).Namespace(namespace).Create(ctx, window("nightly", daily(2*time.Hour, 3*time.Hour)), metav1.CreateOptions{}))
		Eventually(ctx, func(g Gomega) {
			effective := meta.FindStatusCondition(windowStatus(ctx, g, namespace, "nightly").Conditions, guardv1alpha1.OperationWindowEffective)
			g.Expect(effective).NotTo(BeNil())
			g.Expect(effective.Reason).To(Equal("AuditMode"))
		}).WithTimeout(leaderWait).Should(Succeed(), "the condition Effective")
		scaled := ordinary.kubectl(ctx, "scale", "-n", namespace, "deployment/web", "--replicas=0").ExpectDone()
		Expect(scaled.Stderr).To(And(ContainSubstring("Warning:"), ContainSubstring("nightly is closed")), "%s", scaled)
	}, SpecTimeout(2*clusterStart))
})
