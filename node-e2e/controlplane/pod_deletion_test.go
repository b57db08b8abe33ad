package controlplane

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// controllerReaction covers what a controller does about an event, with the
	// back-off after a refusal or two.
	controllerReaction = 30 * time.Second
	// controllerQuiet is long enough for a controller to try again several times.
	controllerQuiet = 5 * time.Second
	// recordTaken is how soon a kubelet looks for the record of a pod that it holds.
	recordTaken = time.Minute
	// spentBudget is in a refusal once a budget has let go what it may. Its end differs:
	// the budget has no disruption left, or, as soon as the disruption controller has
	// counted, it needs the healthy pods that it has.
	spentBudget = "is held to poddisruptionbudget web, which "
)

// granted are the labels of a namespace whose pods may be protected.
var granted = map[string]string{labelProtectPods: guardv1alpha1.ProtectPodsAllowed}

// webPod is a protected pod of the workload web.
func webPod(name string) *corev1.Pod {
	pod := newPod("web", map[string]string{labelExplicitDeletion: guardv1alpha1.ExplicitDeletionRequired})
	pod.Name = name
	return pod
}

func webPods(count int) []*corev1.Pod {
	pods := make([]*corev1.Pod, count)
	for i := range pods {
		pods[i] = webPod(fmt.Sprintf("web-%d", i))
	}
	return pods
}

// terminatingPods returns the names of the pods of web that are being deleted, and
// how many pods of web are not.
func terminatingPods(ctx context.Context, namespace string) (terminating []string, others int) {
	GinkgoHelper()
	for _, pod := range framework.Must(client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})).Items {
		if pod.DeletionTimestamp != nil {
			terminating = append(terminating, pod.Name)
		} else {
			others++
		}
	}
	return terminating, others
}

// decisions adds up what all replicas of the webhook have counted for a rule, by
// verdict.
func decisions(ctx context.Context, rule admission.RuleName) map[admission.Verdict]int {
	GinkgoHelper()
	sum := map[admission.Verdict]int{}
	for _, pod := range webhookPods(ctx) {
		series := scrape(ctx, &pod).Series(admission.DecisionsMetric, map[string]string{"rule": string(rule)})
		for verdict, count := range framework.ByLabel[admission.Verdict](series, "decision") {
			sum[verdict] += count
		}
	}
	return sum
}

// counted returns what was counted since before.
func counted(ctx context.Context, rule admission.RuleName, before map[admission.Verdict]int) map[admission.Verdict]int {
	GinkgoHelper()
	since := map[admission.Verdict]int{}
	for verdict, count := range decisions(ctx, rule) {
		if count != before[verdict] {
			since[verdict] = count - before[verdict]
		}
	}
	return since
}

// records are the deletions of pods that are recorded.
func records(c dynamic.Interface) dynamic.ResourceInterface {
	return c.Resource(guardv1alpha1.GroupVersion.WithResource("poddeletions"))
}

func getRecord(ctx context.Context, uid types.UID) (*guardv1alpha1.PodDeletion, error) {
	object, err := records(dynamicClient).Get(ctx, string(uid), metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return fromUnstructured[guardv1alpha1.PodDeletion](object)
}

func createRecord(ctx context.Context, c dynamic.Interface, object metav1.ObjectMeta, spec guardv1alpha1.PodDeletionSpec) {
	GinkgoHelper()
	framework.Must(records(c).Create(ctx, toUnstructured(&guardv1alpha1.PodDeletion{
		TypeMeta:   metav1.TypeMeta{APIVersion: guardv1alpha1.GroupVersion.String(), Kind: guardv1alpha1.PodDeletionKind},
		ObjectMeta: object,
		Spec:       spec,
	}), metav1.CreateOptions{}))
}

var _ = Describe("deletion of protected pods", func() {
	var (
		namespace string
		pods      func(kubernetes.Interface) podDeleter
	)
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx, granted)
		pods = func(c kubernetes.Interface) podDeleter { return c.CoreV1().Pods(namespace) }
	})
	// budgeted creates pods of web on a silent node, and a budget that lets as many of
	// them go as are allowed.
	budgeted := func(ctx SpecContext, count, allowed int) []*corev1.Pod {
		GinkgoHelper()
		created := createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPods(count)...)
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", count-allowed), allowed)
		return created
	}
	terminatingNames := func(ctx context.Context) []string {
		names, _ := terminatingPods(ctx, namespace)
		return names
	}
	// awaitRefused waits until the webhook has refused a delete since before.
	awaitRefused := func(ctx SpecContext, before map[admission.Verdict]int, requestedBy string) {
		GinkgoHelper()
		Eventually(ctx, func() int { return counted(ctx, admission.PodDeletion, before)[admission.Refused] }).
			WithTimeout(controllerReaction).Should(BeNumerically(">", 0), "refused deletes by the %s", requestedBy)
	}

	It("does not keep a workload from adopting pods that have lost their owner", func(ctx SpecContext) {
		before := map[types.UID]bool{}
		for _, pod := range budgeted(ctx, 3, 0) {
			before[pod.UID] = true
		}
		template := podTemplate(webPod("").Labels)
		framework.Must(client.AppsV1().ReplicaSets(namespace).Create(ctx, &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Name: "web"},
			Spec: appsv1.ReplicaSetSpec{
				Replicas: ptr.To[int32](3), Selector: &metav1.LabelSelector{MatchLabels: framework.AppLabels("web")}, Template: template,
			},
		}, metav1.CreateOptions{}))
		adopted := func(ctx context.Context) (list []types.UID) {
			for _, pod := range framework.Must(client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})).Items {
				if metav1.GetControllerOf(&pod) != nil {
					list = append(list, pod.UID)
				}
			}
			return list
		}
		Eventually(ctx, adopted).WithTimeout(controllerReaction).Should(HaveLen(3), "pods that the ReplicaSet has adopted")
		Consistently(ctx, adopted).WithTimeout(controllerQuiet).Should(HaveLen(3))
		for _, uid := range adopted(ctx) {
			Expect(before).To(HaveKey(uid), "a new pod")
		}
		Expect(client.AppsV1().ReplicaSets(namespace).Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationOrphan)})).To(Succeed())
	})

	It("is held to the budget, for each who asks", func(ctx SpecContext) {
		node := budgeted(ctx, 4, 1)[0].Spec.NodeName

		By("letting one pass")
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(Succeed())
		By("refusing the next, with the budget and the next step")
		Expect(pods(ordinary.client()).Delete(ctx, "web-1", metav1.DeleteOptions{})).To(BeRefused(
			"pod/web-1 in namespace "+namespace, spentBudget,
			"kubectl get poddisruptionbudget web -n "+namespace))
		Expect(pods(client).Delete(ctx, "web-1", metav1.DeleteOptions{})).To(BeRefused(), "the administrator")
		for _, name := range []string{"generic-garbage-collector", "node-controller"} {
			Expect(pods(controller(name).client()).Delete(ctx, "web-1", metav1.DeleteOptions{})).To(BeRefused(), name)
		}
		scheduler := user{name: "system:kube-scheduler"}
		Expect(pods(scheduler.client()).Delete(ctx, "web-1", metav1.DeleteOptions{})).To(BeRefused(), "preemption")
		By("refusing the pod garbage collector, which says first that the pod has failed")
		markFailed(ctx, namespace, "web-1")
		Expect(pods(controller("pod-garbage-collector").client()).Delete(ctx, "web-1", *metav1.NewDeleteOptions(0))).To(BeRefused(spentBudget))
		By("letting the terminating one be deleted again, sooner")
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(1))).To(Succeed())
		By("letting the node end what is terminating, and nothing else")
		Expect(pods(nodeUser(node).client()).Delete(ctx, "web-2", *metav1.NewDeleteOptions(0))).To(BeRefused(spentBudget))
		Expect(pods(nodeUser(node).client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(0))).To(Succeed())
		Expect(framework.ErrorOf(client.CoreV1().Pods(namespace).Get(ctx, "web-0", metav1.GetOptions{}))).To(BeNotFound())
	})

	It("leaves pods alone that are not labelled", func(ctx SpecContext) {
		node := createSilentNode(ctx, nil)
		plain := webPod("plain")
		delete(plain.Labels, labelExplicitDeletion)
		createSilentPods(ctx, namespace, node, plain)
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 1), 0)
		before := decisions(ctx, admission.PodDeletion)
		Expect(pods(ordinary.client()).Delete(ctx, "plain", metav1.DeleteOptions{})).To(Succeed())
		Expect(counted(ctx, admission.PodDeletion, before)).To(BeEmpty(), "the webhook gets no request")
	})

	It("charges nothing for a dry run", func(ctx SpecContext) {
		budgeted(ctx, 2, 1)
		dry := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
		before := framework.Must(client.PolicyV1().PodDisruptionBudgets(namespace).Get(ctx, "web", metav1.GetOptions{}))
		for range 3 {
			Expect(pods(ordinary.client()).Delete(ctx, "web-0", dry)).To(Succeed())
		}
		forced := *metav1.NewDeleteOptions(0)
		forced.DryRun = dry.DryRun
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", forced)).To(Succeed())
		pod := framework.Must(client.CoreV1().Pods(namespace).Get(ctx, "web-0", metav1.GetOptions{}))
		Expect(framework.ErrorOf(getRecord(ctx, pod.UID))).To(BeNotFound(), "a record of a dry run")
		after := framework.Must(client.PolicyV1().PodDisruptionBudgets(namespace).Get(ctx, "web", metav1.GetOptions{}))
		Expect(after.ResourceVersion).To(Equal(before.ResourceVersion), "resource version of the budget")
		By("deciding as for a real one")
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(Succeed())
		Expect(pods(ordinary.client()).Delete(ctx, "web-1", dry)).To(BeRefused())
	})

	It("charges a forced delete once, which the API server reviews twice", func(ctx SpecContext) {
		created := budgeted(ctx, 4, 2)
		before, since := decisions(ctx, admission.PodDeletion), time.Now()
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(0))).To(Succeed())
		// The second review is made again when it had an old object of the API server's
		// cache. That one may charge, which the disruption controller corrects.
		Expect(counted(ctx, admission.PodDeletion, before)).To(And(HaveLen(1), HaveKeyWithValue(admission.Allowed, Or(Equal(2), Equal(3)))), "reviews")
		framework.AwaitAllowed(ctx, client, namespace, "web", 1)

		By("writing its record, and that into the audit log")
		record := framework.Must(getRecord(ctx, created[0].UID))
		Expect(record.Spec).To(HaveField("RequestedBy", "ordinary"))
		Expect(record.Spec.Expires.Time).To(BeTemporally("~", time.Now().Add(7*24*time.Hour), time.Minute))
		auditEntry(ctx, since, "the forced delete, with its record", func(entry auditv1.Event) bool {
			return entry.Verb == "delete" && entry.ObjectRef.Name == "web-0" &&
				entry.Annotations["pod-deletion.kubelet-guard.io/record"] == string(created[0].UID)
		})
		By("going on until the budget is spent")
		Expect(pods(ordinary.client()).Delete(ctx, "web-1", *metav1.NewDeleteOptions(0))).To(Succeed())
		Expect(pods(ordinary.client()).Delete(ctx, "web-2", *metav1.NewDeleteOptions(0))).To(BeRefused(spentBudget))
		Expect(framework.ErrorOf(getRecord(ctx, created[2].UID))).To(BeNotFound(), "a record of a refused delete")
	})

	It("shares the budget with evictions, which are charged once", func(ctx SpecContext) {
		budgeted(ctx, 4, 2)
		before, since := decisions(ctx, admission.PodDeletion), time.Now()
		Expect(evict(ctx, namespace, "web-0", nil)).To(Succeed())
		Expect(counted(ctx, admission.PodDeletion, before)).To(BeEmpty(), "reviews of the delete that an eviction makes")
		auditEntry(ctx, since, "the eviction, without a charge by the webhook", func(entry auditv1.Event) bool {
			_, charged := entry.Annotations["pod-deletion.kubelet-guard.io/budget"]
			return entry.ObjectRef.Subresource == "eviction" && entry.ObjectRef.Name == "web-0" && !charged
		})
		framework.AwaitAllowed(ctx, client, namespace, "web", 1)
		Expect(pods(ordinary.client()).Delete(ctx, "web-1", metav1.DeleteOptions{})).To(Succeed())
		By("refusing both once it is spent")
		Expect(evict(ctx, namespace, "web-2", nil)).To(MatchError(apierrors.IsTooManyRequests, "is too many requests"))
		Expect(pods(ordinary.client()).Delete(ctx, "web-2", metav1.DeleteOptions{})).To(BeRefused())
	})

	It("holds DELETECOLLECTION to the budget, pod by pod", func(ctx SpecContext) {
		budgeted(ctx, 5, 2)
		before := decisions(ctx, admission.PodDeletion)
		err := ordinary.client().CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=web"})
		Expect(err).To(BeRefused("pod/web-2 in namespace "+namespace, spentBudget))
		terminating, others := terminatingPods(ctx, namespace)
		Expect(terminating).To(ConsistOf("web-0", "web-1"))
		Expect(others).To(Equal(3))
		Expect(counted(ctx, admission.PodDeletion, before)).To(Equal(map[admission.Verdict]int{admission.Allowed: 2, admission.Refused: 1}),
			"one review for each pod, none for the collection")
	})

	It("refuses pods of several budgets, as eviction does", func(ctx SpecContext) {
		createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPods(4)...)
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("a", "web", 2), 2)
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("b", "web", 3), 1)
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(BeRefused("several poddisruptionbudgets select it (a,b)"))
		Expect(evict(ctx, namespace, "web-0", nil)).To(MatchError(ContainSubstring("more than one PodDisruptionBudget")))
		By("letting one of them be deleted, and the pod go then")
		Expect(ordinary.client().PolicyV1().PodDisruptionBudgets(namespace).Delete(ctx, "b", metav1.DeleteOptions{})).To(Succeed())
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(Succeed())
	})

	It("lets pods go that are not ready, as their budget says", func(ctx SpecContext) {
		created := createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPods(3)...)
		for _, pod := range created[:2] {
			pod.Status.Conditions[0].Status = corev1.ConditionFalse
			framework.Must(client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}))
		}
		budget := framework.NewBudget("web", "web", 2)
		framework.CreateBudget(ctx, client, namespace, budget, 0)
		Eventually(ctx, func(g Gomega) int32 {
			return framework.Try(client.PolicyV1().PodDisruptionBudgets(namespace).Get(ctx, "web", metav1.GetOptions{})).In(g).Status.CurrentHealthy
		}).WithTimeout(framework.APILag).Should(BeEquivalentTo(1), "healthy pods in the budget's count")
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(BeRefused("needs 2 healthy pods and has 1"))
		patch := []byte(`{"spec":{"unhealthyPodEvictionPolicy":"AlwaysAllow"}}`)
		framework.Must(client.PolicyV1().PodDisruptionBudgets(namespace).Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{}))
		framework.AwaitAllowed(ctx, client, namespace, "web", 0)
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(Succeed())
		Expect(pods(ordinary.client()).Delete(ctx, "web-2", metav1.DeleteOptions{})).To(BeRefused(), "the one that is ready")
	})

	It("lets exactly 3 of 200 concurrent deletes pass, while a replica of the webhook is killed", func(ctx SpecContext) {
		const count, allowed = 200, 3
		budgeted(ctx, count, allowed)
		Expect(webhookPods(ctx)).To(HaveLen(webhookReplicas))

		requested := ordinary.client()
		type responses struct{ passed, refused, failed int }
		// wave deletes all pods at once; those whose review fails, because it went to the
		// killed replica, are requested again until there is a response.
		wave := func(onResponse func()) responses {
			var (
				mu    sync.Mutex
				all   responses
				tasks sync.WaitGroup
			)
			for i := range count {
				tasks.Go(func() {
					defer GinkgoRecover()
					Eventually(ctx, func() error {
						// The UID makes sure that no pod is counted twice.
						err := pods(requested).Delete(ctx, fmt.Sprintf("web-%d", i), metav1.DeleteOptions{})
						refused, _ := BeRefused("poddisruptionbudget web").Match(err)
						mu.Lock()
						switch {
						case err == nil:
							all.passed++
						case refused:
							all.refused++
						default:
							all.failed++
						}
						mu.Unlock()
						if err != nil && !refused {
							return err
						}
						onResponse()
						return nil
					}).WithTimeout(time.Minute).Should(Succeed(), "a response for web-%d", i)
				})
			}
			tasks.Wait()
			return all
		}
		var killed sync.Once
		victim := webhookPods(ctx)[0]
		var processes []testnode.Container
		first := wave(func() {
			killed.Do(func() {
				processes = killContainers(ctx, victim.UID)
			})
		})
		Expect(processes).NotTo(BeEmpty(), "killed processes of the webhook")
		Expect(first.passed).To(Equal(allowed), "deletes that passed; refused %d, to be sent again %d", first.refused, first.failed)
		terminating, others := terminatingPods(ctx, namespace)
		Expect(terminating).To(HaveLen(allowed))
		Expect(others).To(Equal(count - allowed))

		By("sending all again, with the replica back")
		awaitWebhook(ctx)
		second := wave(func() {})
		Expect(second.refused).To(Equal(count-allowed), "deletes that were refused, of those not terminating; failed: %d", second.failed)
		Expect(terminatingNames(ctx)).To(HaveLen(allowed))
		framework.Progress("200 deletes: %d passed, %d refused, %d sent again since their replica was killed", first.passed, first.refused, first.failed)
	}, SpecTimeout(4*time.Minute))

	It("is held for kubectl delete --all", func(ctx SpecContext) {
		budgeted(ctx, 4, 1)
		result := ordinary.kubectl(ctx, "delete", "pods", "--all", "-n", namespace, "--wait=false")
		Expect(result.Err).To(HaveOccurred())
		Expect(result.Stdout).To(ContainSubstring(`pod "web-0" deleted`))
		Expect(strings.Count(result.Stderr, "poddisruptionbudget web, which")).To(Equal(3), "%s", result)
		Expect(terminatingNames(ctx)).To(ConsistOf("web-0"))
	})

	DescribeTable("is held for kubectl drain",
		func(ctx SpecContext, refusal string, flags ...string) {
			node := budgeted(ctx, 4, 1)[0].Spec.NodeName
			result := ordinary.kubectl(ctx, append([]string{"drain", node, "--force", "--timeout=8s"}, flags...)...)
			Expect(result.Err).To(HaveOccurred(), "%s", result)
			Expect(result.Stderr).To(ContainSubstring(refusal), "%s", result)
			terminating, others := terminatingPods(ctx, namespace)
			Expect(terminating).To(HaveLen(1), "%s", result)
			Expect(others).To(Equal(3))
		},
		Entry("by eviction", "Cannot evict pod as it would violate the pod's disruption budget"),
		Entry("by deletion", "poddisruptionbudget web, which needs 3 healthy pods", "--disable-eviction"),
	)

	It("is held for taint eviction, which forgets the pods, and made up for when the budget allows it", func(ctx SpecContext) {
		node := budgeted(ctx, 4, 1)[0].Spec.NodeName
		kubectl(ctx, "taint", "node", node, "spec=broken:NoExecute").ExpectDone()
		Eventually(ctx, terminatingNames).WithTimeout(controllerReaction).Should(HaveLen(1))
		Consistently(ctx, terminatingNames).WithTimeout(controllerQuiet).Should(HaveLen(1))
		By("requiring one pod less")
		kubectl(ctx, "patch", "poddisruptionbudget", "web", "-n", namespace, "--type=merge", fmt.Sprintf(`--patch={"metadata":{"annotations":{%q:%q}},"spec":{"minAvailable":2}}`,
			annotationOverride, overrideFor(time.Hour, "one less"))).ExpectDone()
		Eventually(ctx, terminatingNames).WithTimeout(2*controllerReaction).Should(HaveLen(2), "terminating pods, though taint eviction has given up")
		Consistently(ctx, terminatingNames).WithTimeout(controllerQuiet).Should(HaveLen(2))
	})

	It("passes for the pods of a lost node, and is held in a mass failure", func(ctx SpecContext) {
		const one, all = "one-lost", "all-lost"
		createPool(ctx, one, 4, 3)
		createPool(ctx, all, 3, 0)
		for _, pool := range []string{one, all} {
			createNodePolicy(ctx, nodePolicy(pool, pool, "maxDeletions: 1, period: 1h"))
		}
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 2), 0)
		for node, pod := range map[string]string{one + "-003": "web-lost", all + "-000": "web-mass"} {
			created := createSilentPods(ctx, namespace, node, webPod(pod))[0]
			created.Status.Conditions[0].Status = corev1.ConditionFalse
			framework.Must(client.CoreV1().Pods(namespace).UpdateStatus(ctx, created, metav1.UpdateOptions{}))
		}
		ordinary.kubectl(ctx, "delete", "pod", "web-mass", "-n", namespace, "--wait=false").
			ExpectRefused("does not count as lost, since 3 of 3 nodes of the pool of NodeDeletionPolicy " + all + " are not ready")
		ordinary.kubectl(ctx, "delete", "pod", "web-lost", "-n", namespace, "--wait=false").ExpectDone()
		Expect(terminatingNames(ctx)).To(ConsistOf("web-lost"))
	})

	// silentWorkload creates a workload whose one pod is on a silent node and is ready there,
	// and returns the pod. At the end both go.
	silentWorkload := func(ctx SpecContext, workload runtime.Object) *corev1.Pod {
		GinkgoHelper()
		object := toUnstructured(workload)
		gvr := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: strings.ToLower(object.GetKind()) + "s"}
		resource := dynamicClient.Resource(gvr).Namespace(namespace)
		framework.Must(resource.Create(ctx, object, metav1.CreateOptions{}))
		of := func(ctx context.Context) []corev1.Pod {
			return framework.Must(client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})).Items
		}
		DeferCleanup(func(ctx SpecContext) {
			Expect(resource.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationOrphan)})).To(Succeed())
			for _, pod := range of(ctx) {
				endSilentPod(ctx, &pod)
			}
		}, NodeTimeout(podStart))
		Eventually(ctx, func(g Gomega) {
			pods := of(ctx)
			g.Expect(pods).To(HaveLen(1))
			g.Expect(pods[0].Spec.NodeName).NotTo(BeEmpty(), "node")
		}).WithTimeout(podStart).Should(Succeed(), "the pod of %s", object.GetName())
		pod := of(ctx)[0]
		return reportRunning(ctx, &pod)
	}
	sameUID := func(pod *corev1.Pod) func(Gomega, context.Context) {
		return func(g Gomega, ctx context.Context) {
			live := framework.Try(client.CoreV1().Pods(namespace).Get(ctx, pod.Name, metav1.GetOptions{})).In(g)
			g.Expect(live.UID).To(Equal(pod.UID), "UID of %s", pod.Name)
			g.Expect(live.DeletionTimestamp).To(BeNil(), "deletion of %s", pod.Name)
		}
	}
	statefulSet := func(node string) *appsv1.StatefulSet {
		template := webTemplate()
		template.Spec.NodeName, template.Spec.TerminationGracePeriodSeconds = node, ptr.To[int64](600)
		return framework.NewStatefulSet("web", 1, template)
	}

	It("is held for a StatefulSet, when its pod is only said to have failed", func(ctx SpecContext) {
		pod := silentWorkload(ctx, statefulSet(createSilentNode(ctx, nil)))
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 1), 0)
		before := decisions(ctx, admission.PodDeletion)
		framework.Must(ordinary.client().CoreV1().Pods(namespace).Patch(ctx, pod.Name, types.MergePatchType, []byte(`{"status":{"phase":"Failed"}}`), metav1.PatchOptions{}, "status"))
		awaitRefused(ctx, before, "StatefulSet controller")
		Consistently(ctx, sameUID(pod)).WithTimeout(controllerQuiet).Should(Succeed())
		Expect(framework.ErrorOf(getRecord(ctx, pod.UID))).To(BeNotFound(), "a record of a refused delete")
	}, SpecTimeout(specTimeout))

	It("is held behind a node that was deleted, but not for pods that were not ready", func(ctx SpecContext) {
		node := createSilentNode(ctx, nil)
		pod := silentWorkload(ctx, statefulSet(node))
		Expect(client.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{})).To(Succeed())
		markFailed(ctx, namespace, pod.Name)
		deleted := func(ctx context.Context) error {
			return pods(controller("pod-garbage-collector").client()).Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0))
		}
		Expect(deleted(ctx)).To(BeRefused("node "+node+" was deleted, which may have been a mistake", "the pod was ready then and is kept until"))
		By("holding the StatefulSet controller, which deletes what has failed")
		Consistently(ctx, sameUID(pod)).WithTimeout(controllerQuiet).Should(Succeed())
		By("letting the pod go that was not ready when its node was deleted")
		framework.Must(client.CoreV1().Pods(namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`), metav1.PatchOptions{}, "status"))
		Expect(deleted(ctx)).To(Or(Succeed(), BeNotFound()))
		framework.Must(getRecord(ctx, pod.UID))
	}, SpecTimeout(specTimeout))

	It("is held for a DaemonSet whose node no longer fits, and passes for its roll-out", func(ctx SpecContext) {
		const label = "kubelet-guard-e2e/daemon"
		node := createSilentNode(ctx, map[string]string{label: namespace})
		template := webTemplate()
		template.Spec.NodeSelector, template.Spec.TerminationGracePeriodSeconds = map[string]string{label: namespace}, ptr.To[int64](600)
		pod := silentWorkload(ctx, framework.NewDaemonSet("web", template))
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 1), 0)
		before := decisions(ctx, admission.PodDeletion)
		kubectl(ctx, "label", "node", node, label+"-").ExpectDone()
		awaitRefused(ctx, before, "DaemonSet controller")
		Consistently(ctx, sameUID(pod)).WithTimeout(controllerQuiet).Should(Succeed())

		kubectl(ctx, "label", "node", node, label+"="+namespace).ExpectDone()
		kubectl(ctx, "set", "env", "daemonset/web", "-n", namespace, "REVISION=2").ExpectDone()
		Eventually(ctx, terminatingNames).WithTimeout(controllerReaction).Should(ConsistOf(pod.Name), "the outdated pod")
	}, SpecTimeout(specTimeout))

	It("is refused to an eviction of a pod labelled always", func(ctx SpecContext) {
		always := webPod("always")
		always.Labels[labelDeletionProtection] = "always"
		createSilentPods(ctx, namespace, createSilentNode(ctx, nil), always)
		Expect(pods(ordinary.client()).Delete(ctx, "always", metav1.DeleteOptions{})).To(BeRefused("pods always was not deleted"))
		Expect(evict(ctx, namespace, "always", nil)).To(BeRefused("pods/always in namespace "+namespace+" was not deleted", "deletion-protection=always"))
	})

	It("is held for the garbage collector, when the owner is gone", func(ctx SpecContext) {
		owner := framework.Must(client.AppsV1().ReplicaSets(namespace).Create(ctx, &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Name: "web"},
			Spec: appsv1.ReplicaSetSpec{
				Replicas: ptr.To[int32](3), Selector: framework.AppSelector("web"),
				Template: webTemplate(),
			},
		}, metav1.CreateOptions{}))
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 2), 1)
		Expect(ordinary.client().AppsV1().ReplicaSets(namespace).Delete(ctx, owner.Name, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})).To(Succeed())
		remaining := func() int { _, others := terminatingPods(ctx, namespace); return others }
		Eventually(ctx, remaining).WithTimeout(controllerReaction).Should(Equal(2))
		Consistently(ctx, remaining).WithTimeout(controllerQuiet).Should(Equal(2), "pods left running")
	})

	It("is held for the garbage collector, when the owner never existed, as after a restore", func(ctx SpecContext) {
		created := budgeted(ctx, 2, 0)
		before := decisions(ctx, admission.PodDeletion)
		for _, pod := range created {
			framework.Must(client.CoreV1().Pods(namespace).Patch(ctx, pod.Name, types.MergePatchType, []byte(
				`{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"StatefulSet","name":"web","uid":"00000000-0000-4000-8000-000000000001","controller":true}]}}`), metav1.PatchOptions{}))
		}
		awaitRefused(ctx, before, "garbage collector")
		for _, pod := range created {
			sameUID(pod)(Default, ctx)
		}
	})

	It("lets a workload's own controller scale it down below the budget", func(ctx SpecContext) {
		deployment := newDeployment("web", 3, nil)
		deployment.Spec.Template = webTemplate()
		createDeployment(ctx, namespace, deployment)
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 2), 1)
		ordinary.kubectl(ctx, "scale", "deployment/web", "-n", namespace, "--replicas=0").ExpectDone()
		Eventually(ctx, func() int { terminating, others := terminatingPods(ctx, namespace); return len(terminating) + others }).
			WithTimeout(podStart).Should(BeZero(), "pods of the workload")
	})

	// The namespace controller deletes pods first and waits for them. If it was refused it
	// would go on to what they use. So it is the namespace that is held.
	It("is held by the namespace, and not once that is deleted by override, so that pods keep what they use", func(ctx SpecContext) {
		ending := webPod("ending")
		ending.Spec.TerminationGracePeriodSeconds = ptr.To[int64](20)
		ending.Spec.Containers[0].Args = []string{"--term-delay=10s"}
		createPod(ctx, namespace, ending)
		lost := createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPod("lost"))[0]
		framework.Must(client.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "used"}}, metav1.CreateOptions{}))
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 2), 0)
		markFailed(ctx, namespace, "lost")

		Expect(ordinary.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).
			To(BeRefused("namespace/" + namespace + " was not deleted: its protected pods would be deleted with it, past their budgets: 1 (ending)"))
		kubectl(ctx, "annotate", "namespace", namespace, "--overwrite", annotationOverride+"="+overrideFor(time.Hour, "moved")).ExpectDone()
		Expect(client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).To(Succeed())
		Eventually(ctx, func(g Gomega) {
			terminating, others := terminatingPods(ctx, namespace)
			g.Expect(terminating).To(ConsistOf("ending"))
			g.Expect(others).To(BeZero(), "pods that are not terminating")
		}).WithTimeout(controllerReaction).Should(Succeed(), "the deletion of the pods")
		By("keeping what the pod uses while it ends")
		Consistently(ctx, func(g Gomega) {
			framework.Try(client.CoreV1().Secrets(namespace).Get(ctx, "used", metav1.GetOptions{})).In(g)
			framework.Try(client.PolicyV1().PodDisruptionBudgets(namespace).Get(ctx, "web", metav1.GetOptions{})).In(g)
		}).WithTimeout(controllerQuiet).Should(Succeed())
		By("having written the record of the one that went at once")
		Expect(framework.Must(getRecord(ctx, lost.UID)).Spec.RequestedBy).To(Equal(controller("namespace-controller").name))
		Eventually(ctx, func() error {
			return framework.ErrorOf(client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}))
		}).WithTimeout(time.Minute).Should(BeNotFound(), "end of the namespace")
	}, SpecTimeout(3*time.Minute))

	It("does not hold pods whose namespace is deleted while the webhook is away", Label(labelOutage), Serial, func(ctx SpecContext) {
		createPod(ctx, namespace, webPod("web-0"))
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 1), 0)
		stopWebhook(ctx)
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(MatchError(ContainSubstring(`failed calling webhook "pod-deletion.kubelet-guard.io"`)))
		Expect(ordinary.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).
			To(MatchError(ContainSubstring(`failed calling webhook "protection.kubelet-guard.io"`)))
		By("deleting the namespace past the webhook, as an administrator can")
		setFailurePolicy(ctx, "protection.kubelet-guard.io", admissionregistrationv1.Ignore)
		DeferCleanup(setFailurePolicy, "protection.kubelet-guard.io", admissionregistrationv1.Fail)
		Eventually(ctx, func() error {
			return ordinary.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
		}).WithTimeout(policyWait).Should(Succeed())
		Eventually(ctx, func() error {
			return framework.ErrorOf(client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}))
		}).WithTimeout(time.Minute).Should(BeNotFound(), "end of the namespace")
	}, SpecTimeout(4*time.Minute))

	It("leaves no record of a pod that its node rejected", func(ctx SpecContext) {
		created := budgeted(ctx, 2, 0)
		for _, pod := range created {
			pod.Status = corev1.PodStatus{Phase: corev1.PodFailed, Reason: "NodeAffinity"}
			framework.Must(client.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}))
		}
		// A delete is first reviewed with the object of the API server's cache.
		Eventually(ctx, func(g Gomega) corev1.PodPhase {
			return framework.Try(client.CoreV1().Pods(namespace).Get(ctx, "web-0", metav1.GetOptions{ResourceVersion: "0"})).In(g).Status.Phase
		}).WithTimeout(controllerReaction).Should(Equal(corev1.PodFailed), "phase of web-0 in the cache")
		before := decisions(ctx, admission.PodDeletionRecord)
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", metav1.DeleteOptions{})).To(Succeed())
		Expect(counted(ctx, admission.PodDeletionRecord, before)).To(BeEmpty(), "the webhook gets no request")
		By("writing one if another has said that it failed")
		markFailed(ctx, namespace, "web-1")
		Expect(pods(ordinary.client()).Delete(ctx, "web-1", metav1.DeleteOptions{})).To(Succeed())
		framework.Must(getRecord(ctx, created[1].UID))
		Expect(framework.ErrorOf(getRecord(ctx, created[0].UID))).To(BeNotFound())
	})

	It("replaces a record that is about to expire", func(ctx SpecContext) {
		created := createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPods(1)...)
		createRecord(ctx, dynamicClient, metav1.ObjectMeta{Name: string(created[0].UID)},
			guardv1alpha1.PodDeletionSpec{Namespace: namespace, Name: "web-0", Reason: "by hand", Expires: ptr.To(metav1.NewTime(time.Now().Add(time.Hour)))})
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(0))).To(Succeed())
		record := framework.Must(getRecord(ctx, created[0].UID))
		Expect(record.Spec.Reason).To(Equal("deleted with grace period 0"))
		Expect(record.Spec.Expires.Time).To(BeTemporally("~", time.Now().Add(7*24*time.Hour), time.Minute))
	})

	It("gives a kubelet that was away the record of a forced delete", func(ctx SpecContext) {
		deleted, kept := createPod(ctx, namespace, webPod("deleted")), createPod(ctx, namespace, webPod("kept"))
		running := func(uid types.UID) func() ([]testnode.Container, error) {
			return func() ([]testnode.Container, error) { return containersOf(ctx, uid) }
		}
		before := framework.Must(running(kept.UID)())

		By("stopping the kubelet and deleting the pod by force")
		Expect(cluster.Kubelet().Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			if cluster.Kubelet().PID() == 0 {
				Expect(cluster.Kubelet().Start(ctx, testnode.KubeletChange{})).To(Succeed())
			}
		}, NodeTimeout(time.Minute))
		ordinary.kubectl(ctx, "delete", "pod", "deleted", "-n", namespace, "--force", "--grace-period=0").ExpectDone()
		Expect(framework.ErrorOf(client.CoreV1().Pods(namespace).Get(ctx, "deleted", metav1.GetOptions{}))).To(BeNotFound())
		record := framework.Must(getRecord(ctx, deleted.UID))
		Expect(record.Spec).To(And(HaveField("Namespace", namespace), HaveField("Name", "deleted"), HaveField("RequestedBy", "ordinary")))
		Expect(running(deleted.UID)()).NotTo(BeEmpty(), "nobody has stopped it yet")
		By("losing another pod without a word, as from etcd")
		Expect(cluster.Etcd().Delete(ctx, "/registry/pods/"+namespace+"/kept")).To(Succeed())

		By("starting the kubelet")
		Expect(cluster.Kubelet().Start(ctx, testnode.KubeletChange{})).To(Succeed())
		Eventually(ctx, running(deleted.UID)).WithTimeout(recordTaken).Should(BeEmpty(), "containers of the deleted pod")
		Expect(running(kept.UID)()).To(Equal(before), "the other is held")
		By("releasing the other")
		createRecord(ctx, dynamicClient, metav1.ObjectMeta{Name: string(kept.UID)},
			guardv1alpha1.PodDeletionSpec{Namespace: namespace, Name: "kept", Reason: "end of the spec"})
		Eventually(ctx, running(kept.UID)).WithTimeout(recordTaken).Should(BeEmpty(), "containers of the released pod")
	}, SpecTimeout(4*time.Minute))

	It("leaves a record of a forced eviction, and none of one that the budget refuses", func(ctx SpecContext) {
		created := budgeted(ctx, 2, 1)
		Expect(evict(ctx, namespace, "web-0", metav1.NewDeleteOptions(0))).To(Succeed())
		Expect(framework.Must(getRecord(ctx, created[0].UID)).Spec.Reason).To(Equal("evicted with grace period 0"))
		Expect(evict(ctx, namespace, "web-1", metav1.NewDeleteOptions(0))).To(MatchError(apierrors.IsTooManyRequests, "is too many requests"))
		Expect(framework.ErrorOf(getRecord(ctx, created[1].UID))).To(BeNotFound())
	})

	It("removes the record of a delete that did not happen", func(ctx SpecContext) {
		created := createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPods(1)...)
		createRecord(ctx, dynamicClient, metav1.ObjectMeta{Name: string(created[0].UID), Labels: map[string]string{"app.kubernetes.io/managed-by": "guard-webhook"}},
			guardv1alpha1.PodDeletionSpec{Namespace: namespace, Name: "web-0", Reason: "as the webhook writes it"})
		Eventually(ctx, func() error { return framework.ErrorOf(getRecord(ctx, created[0].UID)) }).WithTimeout(3*time.Minute).WithPolling(time.Second).Should(BeNotFound(), "the collector to remove the record")
	}, SpecTimeout(4*time.Minute))

	It("passes by override, with its record", func(ctx SpecContext) {
		created := budgeted(ctx, 1, 0)
		Expect(pods(overrider.client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(0))).To(BeRefused())
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, annotationOverride, overrideFor(time.Minute, "spec"))
		framework.Must(overrider.client().CoreV1().Pods(namespace).Patch(ctx, "web-0", types.MergePatchType, patch, metav1.PatchOptions{}))
		Expect(pods(ordinary.client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(0))).To(BeRefused("may not use the verb override"))
		Expect(pods(overrider.client()).Delete(ctx, "web-0", *metav1.NewDeleteOptions(0))).To(Succeed())
		framework.Must(getRecord(ctx, created[0].UID))
	})
})

// markFailed says that a pod has failed, as the pod garbage collector does before it deletes
// a pod of a node that is lost.
func markFailed(ctx context.Context, namespace, name string) {
	GinkgoHelper()
	patch := []byte(`{"status":{"phase":"Failed","conditions":[{"type":"DisruptionTarget","status":"True","reason":"DeletionByPodGC"}]}}`)
	framework.Must(controller("pod-garbage-collector").client().CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"))
}

// setFailurePolicy says what becomes of the requests of an entry while the webhook is away.
func setFailurePolicy(ctx context.Context, entry string, policy admissionregistrationv1.FailurePolicyType) {
	GinkgoHelper()
	configurations := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	Expect(retry.RetryOnConflict(retry.DefaultRetry, func() error {
		configuration, err := configurations.Get(ctx, webhookinstall.Configuration, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i := range configuration.Webhooks {
			if configuration.Webhooks[i].Name == entry {
				configuration.Webhooks[i].FailurePolicy = &policy
			}
		}
		return framework.ErrorOf(configurations.Update(ctx, configuration, metav1.UpdateOptions{}))
	})).To(Succeed(), "failure policy of the entry %s", entry)
}

// podDeleter is what the specs use of a client.
type podDeleter interface {
	Delete(ctx context.Context, name string, options metav1.DeleteOptions) error
}

// evict evicts a pod as an ordinary user.
func evict(ctx context.Context, namespace, name string, options *metav1.DeleteOptions) error {
	return ordinary.client().PolicyV1().Evictions(namespace).Evict(ctx, &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, DeleteOptions: options,
	})
}

// webTemplate is the template of protected pods of the workload web.
func webTemplate() corev1.PodTemplateSpec {
	labels := framework.AppLabels("web")
	maps.Copy(labels, map[string]string{labelExplicitDeletion: guardv1alpha1.ExplicitDeletionRequired})
	return podTemplate(labels)
}

// containersOf returns the running containers of a pod.
func containersOf(ctx context.Context, uid types.UID) ([]testnode.Container, error) {
	all, err := cluster.Containerd().Containers(ctx)
	var found []testnode.Container
	for _, container := range all {
		if container.PodUID == string(uid) {
			found = append(found, container)
		}
	}
	return found, err
}

// killContainers kills the processes of a pod, as a crash would.
func killContainers(ctx context.Context, uid types.UID) []testnode.Container {
	GinkgoHelper()
	containers := framework.Must(containersOf(ctx, uid))
	for _, container := range containers {
		Expect(container.Process.Signal(syscall.SIGKILL)).To(Succeed(), "kill %s of %s", container.Name, container.PodName)
	}
	return containers
}

func fromUnstructured[T any](object *unstructured.Unstructured) (*T, error) {
	into := new(T)
	return into, runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into)
}
