package fleet

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/rollout"
)

var _ = Describe("An installer of a roll-out", Label(labelRollout), func() {
	It("writes to its own node only, and there its mark and its report", func(ctx SpecContext) {
		prepareRollouts(ctx)
		own, other := cluster.Pool(poolBlue)[0], cluster.Pool(poolBlue)[1]

		By("acting with the token that an installer gets from its kubelet")
		pod := newPod("installer", onNode(own))
		pod.Spec.ServiceAccountName = rollout.ServiceAccount
		pod = framework.Must(client.CoreV1().Pods(rollout.Namespace).Create(ctx, pod, metav1.CreateOptions{}))
		installer := actingAs(ctx, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID})
		patch := func(client kubernetes.Interface, node *kind.Node, content string) error {
			return framework.ErrorOf(client.CoreV1().Nodes().Patch(ctx, node.Name(), types.MergePatchType, []byte(content), metav1.PatchOptions{}))
		}
		report := `{"metadata":{"annotations":{"` + rollout.ReportAnnotation + `":"{}"}}}`
		// The policy counts a moment after it was created.
		Eventually(ctx, func() error { return patch(installer, other, report) }).WithTimeout(specTimeout).
			Should(MatchError(ContainSubstring("an installer writes to its own node only, and this one is on " + own.Name())))

		By("writing what an installer writes")
		Expect(patch(installer, own, report)).To(Succeed())
		Expect(patch(installer, own, `{"metadata":{"labels":{"`+rollout.StateLabel+`":"`+rollout.StateFailed+`"}}}`)).To(Succeed())
		Expect(patch(installer, own, `{"metadata":{"labels":{"`+rollout.StateLabel+`":null}}}`)).To(Succeed())

		By("writing anything else")
		for content, refusal := range map[string]string{
			`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`: "may set the label " + rollout.StateLabel + " and no other",
			`{"metadata":{"labels":{"` + kind.PoolLabel + `":null}}}`:              "may set the label " + rollout.StateLabel + " and no other",
			`{"metadata":{"annotations":{"example.com/other":"1"}}}`:               "may set the annotation " + rollout.ReportAnnotation + " and no other",
			`{"spec":{"unschedulable":true}}`:                                      "may not change its spec, finalizers or owners",
			`{"metadata":{"finalizers":["example.com/other"]}}`:                    "may not change its spec, finalizers or owners",
		} {
			Expect(patch(installer, own, content)).To(MatchError(ContainSubstring(refusal)), content)
		}
		unbound := actingAs(ctx, nil)
		Expect(patch(unbound, own, report)).To(MatchError(ContainSubstring("this one is on none")), "a token that no pod has")
		Expect(patch(client, own, `{"metadata":{"annotations":{"`+rollout.ReportAnnotation+`":null}}}`)).To(Succeed(), "others are not concerned")
	}, SpecTimeout(specTimeout))
})

// actingAs is a client with a token of the installers' account, for a pod or for none.
func actingAs(ctx context.Context, pod *authenticationv1.BoundObjectReference) kubernetes.Interface {
	GinkgoHelper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: pod}}
	token := framework.Must(client.CoreV1().ServiceAccounts(rollout.Namespace).CreateToken(ctx, rollout.ServiceAccount, request, metav1.CreateOptions{}))
	config := rest.AnonymousClientConfig(adminConfig)
	config.BearerToken = token.Status.Token
	return framework.Must(kubernetes.NewForConfig(config))
}
