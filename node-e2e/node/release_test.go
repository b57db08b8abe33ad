package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// releaseFileTimeout and recordTimeout are promised: how soon the kubelet takes
	// a release file, and how soon it takes a PodDeletion record, as evidence.
	releaseFileTimeout = 10 * time.Second
	recordTimeout      = 30 * time.Second
	// killSlack is what the end of a process may take beyond its grace period.
	killSlack = 5 * time.Second
)

var _ = Describe("A vanished pod ends", Label(labelGuarded), func() {
	It("when a PodDeletion record is written", func(ctx SpecContext) {
		applyManifests(ctx)
		s := newScene(ctx)
		pod := s.runVanished(ctx)
		requested := recordDeletion(ctx, pod)
		expectReleased(ctx, pod, "PodDeletion record", guard.PodDeletionRecord, requested, recordTimeout)
		s.awaitGone(ctx, pod, deletionSlack)
	})

	It("when its release file is written, without an API server", Label(labelControlPlane), func(ctx SpecContext) {
		s := newScene(ctx)
		pod := s.runVanished(ctx)
		startAPIServer := stopAPIServer(ctx)
		requested := releaseByFile(pod)
		expectReleased(ctx, pod, "release file, API server stopped", guard.ReleaseFile, requested, releaseFileTimeout)
		startAPIServer(ctx)
		s.awaitGone(ctx, pod, deletionSlack)
	})

	It("when kubectl guard releases it", func(ctx SpecContext) {
		applyManifests(ctx)
		s := newScene(ctx)
		pod := s.runVanished(ctx)
		DeferCleanup(forgetDeletion, pod.uid)
		requested := time.Now()
		output := kubectl(ctx, "guard", "release", pod.name, "--namespace="+s.namespace, "--yes", "--timeout=0", "--reason=e2e")
		Expect(output).To(ContainSubstring("record " + string(pod.uid) + " written"))
		expectReleased(ctx, pod, "kubectl guard release", guard.PodDeletionRecord, requested, recordTimeout)
		s.awaitGone(ctx, pod, deletionSlack)
	})
})

// runVanished runs a protected pod, loses its object and waits until the
// kubelet holds it.
func (s *scene) runVanished(ctx context.Context) *subject {
	GinkgoHelper()
	pod := s.run(ctx, s.newPod("protected", protected))[0]
	s.loseKey(ctx, pod)
	s.awaitVanished(ctx, pod)
	return pod
}

// expectReleased checks that a pod gets its evidence and ends in the promised time,
// and reports the times.
func expectReleased(ctx context.Context, pod *subject, how string, kind guard.EvidenceKind, requested time.Time, within time.Duration) {
	GinkgoHelper()
	evidence := awaitEvidence(ctx, pod, kind)
	taken := evidence.Time.Sub(requested)
	ended := pod.awaitHonoured(ctx, requested, within+gracePeriod+killSlack)
	framework.Progress("released by %s: taken after %.1f s, process ended after %.1f s", how, taken.Seconds(), ended.Seconds())
	Expect(taken).To(BeNumerically("<=", within), "time until the kubelet takes the evidence")
	Expect(ended).To(BeNumerically("<=", within+gracePeriod+killSlack), "time until the process has ended")
}

// awaitEvidence waits until the kubelet knows that the deletion of a pod is
// explicit. The guard remembers it for half a minute after the pod is gone.
func awaitEvidence(ctx context.Context, pod *subject, kind guard.EvidenceKind) guard.Evidence {
	GinkgoHelper()
	var evidence guard.Evidence
	Eventually(func(g Gomega) {
		known := expectKnown(g, ctx, pod)
		g.Expect(known.Evidence).NotTo(BeNil(), "evidence of pod %s", pod)
		evidence = *known.Evidence
	}).WithContext(ctx).WithTimeout(recordTimeout+killSlack).Should(Succeed(), "the kubelet has evidence for pod %s", pod)
	Expect(evidence.Kind).To(Equal(kind), "evidence of pod %s", pod)
	return evidence
}

// releaseByFile releases a pod on the node and returns when that was.
func releaseByFile(pod *subject) time.Time {
	GinkgoHelper()
	requested := time.Now()
	Expect(writeRelease(pod.uid)).To(Succeed(), "write the release file of pod %s", pod)
	return requested
}

func writeRelease(uid types.UID) error {
	folder := filepath.Join(provider.Node().KubeletDir(), "guard", "release")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, string(uid)), nil, 0o600)
}

// releaseLeft releases a pod at the spec's end, if it still runs then and nobody
// could delete it.
func releaseLeft(pods ...*subject) {
	GinkgoHelper()
	DeferCleanup(func() {
		for _, pod := range pods {
			if variant == Guarded && !ended(pod) {
				releaseByFile(pod)
			}
		}
	})
}

const recordResource = "/apis/kubelet-guard.io/v1alpha1/poddeletions"

// applyManifests gives the cluster what guarded nodes need: the definition of
// PodDeletion and the roles.
func applyManifests(ctx context.Context) {
	GinkgoHelper()
	kubectl(ctx, "apply", "-k", *manifestFlag)
	Eventually(func() error {
		return client.Discovery().RESTClient().Get().AbsPath(recordResource).Do(ctx).Error()
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the API server knows %s", recordResource)
}

// recordDeletion writes the PodDeletion record of a pod and returns when that was.
// The spec's end removes it.
func recordDeletion(ctx context.Context, pod *subject) time.Time {
	GinkgoHelper()
	requested := time.Now()
	Expect(createRecord(ctx, pod)).To(Succeed(), "write the PodDeletion record of pod %s", pod)
	DeferCleanup(forgetDeletion, pod.uid)
	return requested
}

func createRecord(ctx context.Context, pod *subject) error {
	record := fmt.Sprintf(`{"apiVersion":"kubelet-guard.io/v1alpha1","kind":"PodDeletion","metadata":{"name":%q},"spec":{"namespace":%q,"name":%q,"nodeName":%q,"reason":"e2e"}}`,
		pod.uid, pod.namespace, pod.name, provider.Node().Name())
	return client.Discovery().RESTClient().Post().AbsPath(recordResource).SetHeader("Content-Type", "application/json").Body([]byte(record)).Do(ctx).Error()
}

func forgetDeletion(ctx context.Context, uid types.UID) error {
	err := client.Discovery().RESTClient().Delete().AbsPath(recordResource, string(uid)).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// kubectl runs kubectl as administrator, with the project's plugin, and returns
// what it printed.
func kubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	program := framework.Kubectl{
		Program:    strings.Fields(provider.Kubectl())[0],
		Kubeconfig: provider.Kubeconfig(),
		PluginDir:  filepath.Join(outputDir, "bin"),
	}
	return program.Run(ctx, args...).ExpectDone().Output()
}
