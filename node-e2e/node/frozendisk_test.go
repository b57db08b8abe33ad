package node

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// frozenAtMost is when a disk thaws by itself. Nothing can end a process that waits
	// for a frozen one, so a suite that dies must not leave it so.
	frozenAtMost = 120
	// undelayed is what a start or a deletion may take that a hanging disk must not
	// delay: a multiple of what it takes otherwise, and less than any of the guard's
	// own time limits adds to that.
	undelayed = 8 * time.Second
)

var _ = Describe("A state directory whose disk hangs", Label(labelGuarded, labelOwnMachine), func() {
	It("delays no deletion and no unprotected pod, and a protected pod's start for a bounded time", func(ctx SpecContext) {
		if _, err := exec.LookPath("mkfs.ext4"); err != nil {
			Skip("the spec makes a file system of its own with mkfs.ext4 (e2fsprogs): " + err.Error())
		}
		tolerate(stateDirectory)
		s := newScene(ctx)
		folder := mountDisk(ctx)
		restartKubelet(ctx, testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader + "stateDir: " + folder + "\n")})
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"), s.newPod("stays", protected))
		thaw := freeze(ctx, folder)

		By("deleting a protected and an unprotected pod")
		for _, pod := range pods[:2] {
			asked := time.Now()
			s.deleteExplicitly(ctx, pod)
			took := time.Since(asked)
			framework.Progress("state directory's disk frozen: pod %s gone %.1f s after its deletion", pod.name, took.Seconds())
			Expect(took).To(BeNumerically("<", undelayed), "time until pod %s is gone", pod)
		}
		By("starting an unprotected and a protected pod")
		asked := time.Now()
		s.run(ctx, s.newPod("new-unprotected"))
		took := time.Since(asked)
		framework.Progress("state directory's disk frozen: unprotected pod serves after %.1f s", took.Seconds())
		Expect(took).To(BeNumerically("<", undelayed), "time until the unprotected pod serves")
		asked = time.Now()
		late := s.run(ctx, s.newPod("new-protected", protected))[0]
		framework.Progress("state directory's disk frozen: protected pod serves after %.1f s", time.Since(asked).Seconds())
		expectState(Default, ctx, late, guard.Protected)
		pods[2].expectAlive(Default)

		By("thawing the disk: everything is saved")
		thaw()
		file := func(pod *subject) string { return filepath.Join(folder, "pods", string(pod.uid)+".pod") }
		Eventually(provider.Node().Run).WithContext(ctx).WithArguments(ctx, "cat", file(late)).WithTimeout(apiLag).
			Should(HavePrefix(savedFormat), "the file of pod %s", late)
		Eventually(provider.Node().Run).WithContext(ctx).WithArguments(ctx, "ls", filepath.Join(folder, "pods")).WithTimeout(forgetTimeout).
			ShouldNot(ContainSubstring(string(pods[0].uid)), "the file of pod %s, which is gone", pods[0])
		s.deleteExplicitly(ctx, late)
	})
})

// mountDisk mounts a file system of its own on a folder of the node.
func mountDisk(ctx context.Context) (folder string) {
	GinkgoHelper()
	image := filepath.Join(nodeDir(ctx), "disk")
	folder = nodeDir(ctx)
	runOnNode(ctx, "truncate", "--size=16M", image)
	runOnNode(ctx, "mkfs.ext4", "-q", image)
	runOnNode(ctx, "mount", "-o", "loop", image, folder)
	// Not before the kubelet has left it.
	DeferCleanup(func(ctx context.Context) { runOnNode(ctx, "umount", folder) })
	return folder
}

// freeze makes every write to a file system hang, as a failing disk does, until the
// returned function is called or the spec ends.
func freeze(ctx context.Context, folder string) (thaw func()) {
	GinkgoHelper()
	frozen := true
	thaw = func() {
		GinkgoHelper()
		if frozen {
			// Not with the spec's context: that may have ended.
			runOnNode(context.Background(), "fsfreeze", "--unfreeze", folder)
			frozen = false
		}
	}
	// Its environment is empty, so that it is not taken for a part of the cluster, which
	// is killed before the disk has thawed. It gives up its output at once, for which
	// runOnNode waits, and ends with the mount.
	runOnNode(ctx, "env", "-i", "setsid", "--fork", "sh", "-c", fmt.Sprintf(
		"exec >/dev/null 2>&1 </dev/null; i=0; while [ $i -lt %d ] && mountpoint -q %[2]s; do sleep 1; i=$((i+1)); done; fsfreeze --unfreeze %[2]s",
		frozenAtMost, folder))
	DeferCleanup(thaw)
	runOnNode(ctx, "fsfreeze", "--freeze", folder)
	return thaw
}
