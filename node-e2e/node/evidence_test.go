package node

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var _ = Describe("Evidence", Label(labelGuarded), func() {
	It("by file is only what root alone can have put there", func(ctx SpecContext) {
		const nobody = 65534
		forgeries := []struct {
			name  string
			forge func(file string) error
		}{
			{"directory", func(file string) error { return os.Mkdir(file, 0o700) }},
			{"socket", func(file string) error { return syscall.Mknod(file, syscall.S_IFSOCK|0o600, 0) }},
			{"symlink", func(file string) error { return os.Symlink("/etc/hostname", file) }},
			{"other-user", func(file string) error {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					return err
				}
				return os.Chown(file, nobody, nobody)
			}},
		}
		tolerate(stateDirectory)
		s := newScene(ctx)
		templates := []*corev1.Pod{s.newPod("regular", protected)}
		for _, forgery := range forgeries {
			templates = append(templates, s.newPod(forgery.name, protected))
		}
		pods := s.run(ctx, templates...)
		regular, forged := pods[0], pods[1:]
		folder := filepath.Join(provider.Node().KubeletDir(), "guard", "release")
		file := func(pod *subject) string { return filepath.Join(folder, string(pod.uid)) }
		for _, pod := range pods {
			DeferCleanup(os.RemoveAll, file(pod))
			s.loseKey(ctx, pod)
		}
		s.awaitVanished(ctx, pods...)

		By("putting forgeries into the release folder")
		before := mustReadMetrics(ctx).FailedOperations()[stateDirectory]
		for i, forgery := range forgeries {
			Expect(forgery.forge(file(forged[i]))).To(Succeed(), "make a %s", forgery.name)
		}
		for _, pod := range forged {
			expectNodeEvent(ctx, guard.EventSavedPodUnusable, string(pod.uid))
		}
		Expect(mustReadMetrics(ctx).FailedOperations()[stateDirectory]-before).To(BeNumerically(">=", len(forgeries)), guardErrors)

		By("writing a release file where others may write, too")
		Expect(os.Chmod(folder, 0o770)).To(Succeed())
		DeferCleanup(os.Chmod, folder, os.FileMode(0o700))
		Expect(writeRelease(regular.uid)).To(Succeed())
		Consistently(func(g Gomega) {
			for _, pod := range pods {
				pod.expectAlive(g)
				expectState(g, ctx, pod, guard.Held, guard.PodVanished)
			}
		}).WithContext(ctx).WithTimeout(releaseFileTimeout).Should(Succeed(), "nothing in the folder is evidence")
		expectNodeEvent(ctx, guard.EventSavedPodUnusable, "release")

		By("closing the folder to others")
		requested := time.Now()
		Expect(os.Chmod(folder, 0o700)).To(Succeed())
		// Others could write there, so the file is written again.
		Expect(os.RemoveAll(file(regular))).To(Succeed())
		releaseByFile(regular)
		expectReleased(ctx, regular, "regular file of root", guard.ReleaseFile, requested, releaseFileTimeout)
		for _, pod := range forged {
			pod.expectAlive(Default)
			Expect(os.RemoveAll(file(pod))).To(Succeed())
			s.restoreKey(ctx, pod)
			s.deleteExplicitly(ctx, pod)
		}
	})

	It("of a deletion that a restore of the storage undoes ends with the pod's life", Label(labelControlPlane), func(ctx SpecContext) {
		s, pod := runProtected(ctx, withArgs("--term-delay=10m"))
		snapshot := saveStorage(ctx)
		By("deleting the pod by mistake, and undoing that while it ends")
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](600)})).To(Succeed())
		awaitEvidence(ctx, pod, guard.DeletionTimestampSeen)
		snapshot.restore(ctx)
		Expect(syscall.Kill(pod.process.PID, syscall.SIGKILL)).To(Succeed())
		pod.awaitDeath(ctx, time.Now(), killTimeout)

		By("restarting the kubelet, which starts the pod again")
		restartKubelet(ctx, unchanged)
		again := awaitRestarted(ctx, pod)
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, again, guard.Protected).WithTimeout(apiLag).
			Should(Succeed(), "pod %s is protected in its new life", again)
		s.hold(ctx, again)
		stayAlive(ctx, holdPeriod, again)
		s.deleteWith(ctx, again, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](1)})
	})
})

var _ = Describe("GET /guard/pods", Label(labelGuarded), func() {
	It("is not served without authentication", func(ctx SpecContext) {
		const readOnlyPort = "10255"
		node := framework.Must(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{}))
		address := ""
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && !strings.Contains(a.Address, ":") {
				address = net.JoinHostPort(a.Address, readOnlyPort)
			}
		}
		restartKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) { c.ReadOnlyPort = 10255 }})
		Eventually(provider.Node().Fetch).WithContext(ctx).WithArguments(ctx, "http://"+address+"/pods").WithTimeout(apiLag).
			Should(ContainSubstring("PodList"), "the read-only port answers")
		Expect(framework.ErrorOf(provider.Node().Fetch(ctx, "http://"+address+guard.PodsPath))).To(MatchError(ContainSubstring("404")), "GET %s on the read-only port", guard.PodsPath)
		_, err := readGuardPods(ctx)
		Expect(err).NotTo(HaveOccurred(), "GET %s on the authenticated port", guard.PodsPath)
	})
})
