package controlplane

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// fleetDefinition defines a custom kind with a scale subresource.
//
//go:embed testdata/fleet.yaml
var fleetDefinition string

var _ = Describe("replicas-protection: confirm", Label(labelPolicies), func() {
	protected := map[string]string{labelReplicasProtection: "confirm"}

	// A way is how a user changes the replicas of a Deployment.
	type way func(ctx context.Context, u user, namespace, name string, replicas int) error
	ways := map[string]way{
		"PUT": func(ctx context.Context, u user, namespace, name string, replicas int) error {
			return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
				d, err := u.client().AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				*d.Spec.Replicas = int32(replicas)
				return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).Update(ctx, d, metav1.UpdateOptions{}))
			})
		},
		"PATCH": func(ctx context.Context, u user, namespace, name string, replicas int) error {
			return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).Patch(ctx, name, types.StrategicMergePatchType,
				fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{}))
		},
		"server-side apply": func(ctx context.Context, u user, namespace, name string, replicas int) error {
			return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).Patch(ctx, name, types.ApplyPatchType,
				fmt.Appendf(nil, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":%q},"spec":{"replicas":%d}}`, name, replicas),
				metav1.PatchOptions{FieldManager: "spec", Force: new(true)}))
		},
		"PUT of /scale": func(ctx context.Context, u user, namespace, name string, replicas int) error {
			return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).UpdateScale(ctx, name, &autoscalingv1.Scale{
				ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: int32(replicas)},
			}, metav1.UpdateOptions{}))
		},
		"PATCH of /scale": func(ctx context.Context, u user, namespace, name string, replicas int) error {
			return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).Patch(ctx, name, types.MergePatchType,
				fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{}, "scale"))
		},
	}
	annotate := func(ctx context.Context, namespace, name, confirmation string) {
		GinkgoHelper()
		ordinary.kubectl(ctx, "annotate", "deployment", name, "-n", namespace, "--overwrite", annotationConfirm+"="+confirmation).ExpectDone()
	}

	for _, name := range slices.Sorted(maps.Keys(ways)) {
		change := ways[name]
		It("needs a confirmation of the new number: "+name, func(ctx SpecContext) {
			namespace := newNamespace(ctx, nil)
			createDeployment(ctx, namespace, newDeployment("web", 0, protected))
			framework.Must(client.AppsV1().Deployments(namespace).Create(ctx, newDeployment("other", 0, nil), metav1.CreateOptions{}))

			refusal := change(ctx, ordinary, namespace, "web", 1)
			Expect(refusal).To(BeRefused("deployments.apps web were not changed from 0 to 1", "nothing confirms the change"))
			ordinary.followAdvice(ctx, refusal)
			// /scale looks the Deployment up in a cache, which follows in an instant.
			Eventually(ctx, func() error { return change(ctx, ordinary, namespace, "web", 1) }).WithTimeout(policyWait).Should(Succeed())
			Expect(change(ctx, ordinary, namespace, "web", 0)).To(BeRefused(`kubelet-guard.io/confirm-replicas is "1"`))

			for _, c := range []struct {
				confirmation string
				replicas     int
				ok           bool
			}{
				{"0-3", 2, true}, {"0-3", 0, true}, {"1-3", 4, false}, {"2-4", 1, false},
				{"many", 1, false}, {"1-", 1, false}, {"-1", 1, false}, {"99999999999999999999", 1, false}, {" 1", 1, false},
			} {
				annotate(ctx, namespace, "web", c.confirmation)
				if c.ok {
					Eventually(ctx, func() error { return change(ctx, ordinary, namespace, "web", c.replicas) }).
						WithTimeout(policyWait).Should(Succeed(), "%d with the confirmation %q", c.replicas, c.confirmation)
					continue
				}
				// Awaited for the same cache: it may still have the one before.
				Eventually(ctx, func() error {
					return change(ctx, ordinary, namespace, "web", c.replicas)
				}).WithTimeout(policyWait).Should(BeRefused(fmt.Sprintf("is %q", c.confirmation)), "%d with the confirmation %q", c.replicas, c.confirmation)
			}
			Expect(change(ctx, ordinary, namespace, "other", 1)).To(Succeed(), "an unlabelled Deployment in the same namespace")
		}, SpecTimeout(specTimeout))
	}

	DescribeTable("holds for kubectl scale of every kind",
		func(ctx SpecContext, name string) {
			namespace, gvr := newNamespace(ctx, nil), workloadResource(name)
			framework.Must(resourceIn(dynamicClient, gvr, namespace).Create(ctx, toUnstructured(workloads()[name]("web", 0, protected)), metav1.CreateOptions{}))
			scale := func() framework.KubectlResult {
				return ordinary.kubectl(ctx, "scale", name, "web", "-n", namespace, "--replicas=1")
			}
			Eventually(ctx, func() string { return scale().Stderr }).WithTimeout(policyWait).
				Should(ContainSubstring(name + " web were not changed from 0 to 1"))
			ordinary.kubectl(ctx, "annotate", name, "web", "-n", namespace, annotationConfirm+"=1").ExpectDone()
			Eventually(ctx, func() error { return scale().Err }).WithTimeout(policyWait).Should(Succeed())
		},
		Entry(nil, SpecTimeout(specTimeout), "deployments.apps"), Entry(nil, SpecTimeout(specTimeout), "statefulsets.apps"), Entry(nil, SpecTimeout(specTimeout), "replicationcontrollers"),
	)

	It("lets an autoscaler move inside the range and not outside", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		deployment := newDeployment("web", 0, protected)
		deployment.Annotations = map[string]string{annotationConfirm: "0-2"}
		createDeployment(ctx, namespace, deployment)
		scale := ways["PUT of /scale"]
		Eventually(ctx, func() error { return scale(ctx, autoscaler, namespace, "web", 2) }).WithTimeout(policyWait).Should(Succeed())
		Expect(scale(ctx, autoscaler, namespace, "web", 3)).To(BeRefused("were not changed from 2 to 3", `"0-2"`))
		Expect(scale(ctx, autoscaler, namespace, "web", 1)).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("takes confirmation and number in one request, but not the number with the label's removal", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		createDeployment(ctx, namespace, newDeployment("web", 0, protected))
		patch := func(body string) error {
			return framework.ErrorOf(ordinary.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}))
		}
		Expect(patch(fmt.Sprintf(`{"metadata":{"labels":{%q:null}},"spec":{"replicas":1}}`, labelReplicasProtection))).To(BeRefused())
		Expect(patch(fmt.Sprintf(`{"metadata":{"annotations":{%q:"1"}},"spec":{"replicas":1}}`, annotationConfirm))).To(Succeed())
		Expect(patch(`{"spec":{"minReadySeconds":1}}`)).To(Succeed(), "a change of something else")
	}, SpecTimeout(specTimeout))

	It("leaves a roll-out to the controller, also when the template carries the label", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		deployment := newDeployment("web", 1, protected)
		deployment.Spec.Template.Labels[labelReplicasProtection] = "confirm"
		created := createDeployment(ctx, namespace, deployment)
		framework.Must(ordinary.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.StrategicMergePatchType,
			[]byte(`{"spec":{"template":{"metadata":{"annotations":{"roll":"out"}}}}}`), metav1.PatchOptions{}))
		Eventually(ctx, func(g Gomega) {
			sets := framework.Try(client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})).In(g)
			g.Expect(sets.Items).To(HaveLen(2), "ReplicaSets")
			g.Expect(sets.Items).To(ContainElement(HaveField("Status.Replicas", BeZero())), "the old ReplicaSet")
			now := framework.Try(client.AppsV1().Deployments(namespace).Get(ctx, "web", metav1.GetOptions{})).In(g)
			g.Expect(now.Generation).To(BeNumerically(">", created.Generation))
			g.Expect(now.Status.UpdatedReplicas).To(BeEquivalentTo(1), "updated replicas")
		}).WithTimeout(podStart).Should(Succeed(), "the roll-out to complete")
	}, SpecTimeout(specTimeout))

	It("holds what an operator made, through /scale too", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		set := workloads()["statefulsets.apps"]("db", 0, protected).(*appsv1.StatefulSet)
		set.OwnerReferences = []metav1.OwnerReference{{APIVersion: "unknown.example.com/v1", Kind: "Database", Name: "db", UID: "00000000-0000-4000-8000-000000000000", Controller: new(true)}}
		framework.Must(client.AppsV1().StatefulSets(namespace).Create(ctx, set, metav1.CreateOptions{}))
		patch := func(subresources ...string) error {
			return framework.ErrorOf(ordinary.client().AppsV1().StatefulSets(namespace).Patch(ctx, "db", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, subresources...))
		}
		Expect(patch()).To(BeRefused("statefulsets.apps db were not changed from 0 to 1"))
		Eventually(ctx, func() error { return patch("scale") }).WithTimeout(policyWait).Should(BeRefused("statefulsets.apps db were not changed from 0 to 1"))
	}, SpecTimeout(specTimeout))

	It("holds a manifest from which the field was removed, whose default comes back", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		manifest := func(name, replicas string) string {
			return fmt.Sprintf(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s, namespace: %s, labels: {%s: confirm}},
spec: {%sselector: {matchLabels: {app: %s}}, template: {metadata: {labels: {app: %s}}, spec: {containers: [{name: c, image: none, imagePullPolicy: Never}]}}}}`,
				name, namespace, labelReplicasProtection, replicas, name, name)
		}
		for name, flags := range map[string][]string{"client-side": nil, "server-side": {"--server-side"}} {
			apply := append([]string{"apply", "-f", "-"}, flags...)
			kubectlInput(ctx, manifest(name, "replicas: 5, "), apply...).ExpectDone()
			kubectlInput(ctx, manifest(name, ""), apply...).ExpectRefused("deployments.apps " + name + " were not changed from 5 to 1")
		}
	}, SpecTimeout(specTimeout))

	It("covers a custom kind by the component", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		example := filepath.Join(manifestsDir, "control-plane", "components", "scale-custom-kind")
		kubectlInput(ctx, fleetDefinition, "apply", "-f", "-").ExpectDone()
		DeferCleanup(func(ctx SpecContext) {
			kubectl(ctx, "delete", "-k", example).ExpectDone()
			kubectlInput(ctx, fleetDefinition, "delete", "-f", "-", "--wait=false").ExpectDone()
		}, NodeTimeout(podStart))
		kubectl(ctx, "wait", "--for=condition=Established", "crd/fleets.example.com").ExpectDone()
		kubectl(ctx, "apply", "-k", example).ExpectDone()

		gvr := schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "fleets"}
		fleet := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "example.com/v1", "kind": "Fleet",
			"metadata": map[string]any{"name": "web", "labels": map[string]any{labelReplicasProtection: "confirm"}},
			"spec":     map[string]any{"replicas": int64(1)},
		}}
		Eventually(ctx, func() error {
			return framework.ErrorOf(dynamicClient.Resource(gvr).Namespace(namespace).Create(ctx, fleet, metav1.CreateOptions{}))
		}).WithTimeout(controllerWait).Should(Succeed(), "the API server to serve the kind")
		patch := func(body string, subresources ...string) error {
			return framework.ErrorOf(ordinary.dynamic().Resource(gvr).Namespace(namespace).Patch(ctx, "web", types.MergePatchType, []byte(body),
				metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, subresources...))
		}
		const five = `{"spec":{"replicas":5}}`
		Eventually(ctx, func() error { return patch(five) }).WithTimeout(policyWait).Should(BeRefused("fleets.example.com web were not changed from 1 to 5"))
		Eventually(ctx, func() error { return patch(five, "scale") }).WithTimeout(policyWait).Should(BeRefused("fleets.example.com web were not changed from 1 to 5"))
		ordinary.kubectl(ctx, "annotate", "fleets.example.com", "web", "-n", namespace, annotationConfirm+"=2-5").ExpectDone()
		Expect(patch(five)).To(Succeed())
		Eventually(ctx, func() error { return patch(five, "scale") }).WithTimeout(policyWait).Should(Succeed())
		Expect(patch(`{"spec":{"replicas":6}}`, "scale")).To(BeRefused())
	}, SpecTimeout(specTimeout))
})

var _ = Describe("the ReplicaSets of a Deployment", func() {
	dryRun := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
	replicaSetOf := func(ctx context.Context, namespace string) *appsv1.ReplicaSet {
		GinkgoHelper()
		sets := framework.Must(client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{}))
		Expect(sets.Items).To(HaveLen(1))
		return &sets.Items[0]
	}
	patch := func(ctx context.Context, u user, namespace, name, body string, options metav1.PatchOptions, subresources ...string) error {
		return framework.ErrorOf(u.client().AppsV1().ReplicaSets(namespace).Patch(ctx, name, types.MergePatchType, []byte(body), options, subresources...))
	}

	It("change only with it where pods are protected", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "default"})
		createDeployment(ctx, namespace, newDeployment("web", 2, map[string]string{labelReplicasProtection: "confirm"}))
		set := replicaSetOf(ctx, namespace)

		ordinary.kubectl(ctx, "scale", "rs", set.Name, "-n", namespace, "--replicas=0").ExpectRefused("it belongs to Deployment web", "kubectl scale deployments.apps web -n "+namespace+" --replicas=0")
		Expect(framework.ErrorOf(autoscaler.client().AppsV1().ReplicaSets(namespace).UpdateScale(ctx, set.Name,
			&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: set.Name, Namespace: namespace}}, metav1.UpdateOptions{}))).To(BeRefused("it belongs to Deployment web"), "an autoscaler of the ReplicaSet")
		Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"replicas":0}}`, dryRun)).To(
			BeRefused("replicasets.apps "+set.Name+" was not changed", "it belongs to Deployment web", "kubectl scale deployments.apps web -n "+namespace+" --replicas=0"))
		Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"minReadySeconds":1}}`, dryRun)).To(BeRefused("kubectl edit deployments.apps web -n " + namespace))
		Expect(patch(ctx, ordinary, namespace, set.Name, `{"metadata":{"labels":{"note":"x"}}}`, dryRun)).To(Succeed(), "a label")

		By("with an override")
		override := func(u user, value string) error {
			return patch(ctx, u, namespace, set.Name, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}},"spec":{"minReadySeconds":1}}`, annotationOverride, value), dryRun)
		}
		Expect(override(ordinary, overrideFor(time.Hour, "x"))).To(BeRefused("may not use the verb override"))
		Expect(override(overrider, "x")).To(BeRefused("replicaset.apps/"+set.Name, "does not start with a time"))
		Expect(override(overrider, overrideFor(time.Hour, "ticket 21"))).To(Succeed())

		By("scaling the Deployment, as an autoscaler does, and rolling it out")
		ordinary.kubectl(ctx, "annotate", "deployment", "web", "-n", namespace, annotationConfirm+"=1-3").ExpectDone()
		Eventually(ctx, func() error {
			return framework.ErrorOf(autoscaler.client().AppsV1().Deployments(namespace).UpdateScale(ctx, "web",
				&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: 1}}, metav1.UpdateOptions{}))
		}).WithTimeout(policyWait).Should(Succeed())
		Eventually(ctx, func() int32 { return *replicaSetOf(ctx, namespace).Spec.Replicas }).WithTimeout(podStart).Should(BeEquivalentTo(1), "the ReplicaSet to follow")
		ordinary.kubectl(ctx, "rollout", "restart", "deployment/web", "-n", namespace).ExpectDone()
		ordinary.kubectl(ctx, "rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s").ExpectDone()
	}, SpecTimeout(specTimeout))

	It("change only with it where there are windows", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{guardv1alpha1.OperationWindowsLabel: guardv1alpha1.OperationWindowsEnforced})
		createDeployment(ctx, namespace, newDeployment("web", 0, nil))
		var set *appsv1.ReplicaSet
		Eventually(ctx, func(g Gomega) {
			sets := framework.Try(client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})).In(g)
			g.Expect(sets.Items).To(HaveLen(1))
			set = &sets.Items[0]
		}).WithTimeout(controllerWait).Should(Succeed())
		for _, way := range [][]string{nil, {"scale"}} {
			Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"replicas":1}}`, dryRun, way...)).To(BeRefused("it belongs to Deployment web"), "%v", way)
		}
	}, SpecTimeout(specTimeout))

	It("are not held elsewhere, but for one that is labelled itself", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		set := replicaSetOf(ctx, namespace)
		for _, way := range [][]string{nil, {"scale"}} {
			Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"replicas":0}}`, dryRun, way...)).To(Succeed(), "%v", way)
		}
		bare := workloads()["replicasets.apps"]("bare", 0, map[string]string{labelReplicasProtection: "confirm"}).(*appsv1.ReplicaSet)
		framework.Must(client.AppsV1().ReplicaSets(namespace).Create(ctx, bare, metav1.CreateOptions{}))
		scale := func() framework.KubectlResult {
			return ordinary.kubectl(ctx, "scale", "rs", "bare", "-n", namespace, "--replicas=1")
		}
		Expect(scale().Stderr).To(ContainSubstring("replicasets.apps/bare in namespace " + namespace + " were not changed from 0 to 1"))
		ordinary.kubectl(ctx, "annotate", "rs", "bare", "-n", namespace, annotationConfirm+"=1").ExpectDone()
		Expect(scale().Err).NotTo(HaveOccurred())
	}, SpecTimeout(specTimeout))
})
