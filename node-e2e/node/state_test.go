package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// savedFormat starts the first line of a saved pod, up to the number of the format.
const savedFormat = "kubelet-guard saved pod v"

var _ = Describe("A broken state directory", Label(labelGuarded), func() {
	It("with files that cannot be used costs no pod its protection, and each file is named", func(ctx SpecContext) {
		faults := []struct {
			name   string
			damage func(file string, content []byte) error
		}{
			{"unreadable", func(file string, _ []byte) error {
				// Root may read everything but a folder.
				if err := os.Remove(file); err != nil {
					return err
				}
				return os.Mkdir(file, 0o700)
			}},
			{"truncated", func(file string, content []byte) error { return os.WriteFile(file, content[:len(content)/2], 0o600) }},
			{"empty", func(file string, _ []byte) error { return os.Truncate(file, 0) }},
			{"corrupt", func(file string, content []byte) error {
				content[len(content)/2] ^= 1
				return os.WriteFile(file, content, 0o600)
			}},
			{"older", func(file string, content []byte) error { return os.WriteFile(file, withFormat(content, 0), 0o600) }},
			{"newer", func(file string, content []byte) error { return os.WriteFile(file, withFormat(content, 99), 0o600) }},
		}
		tolerate(stateDirectory)
		s := newScene(ctx)
		templates := []*corev1.Pod{s.newPod("gone", protected)}
		for _, fault := range faults {
			templates = append(templates, s.newPod(fault.name, protected))
		}
		pods := s.run(ctx, templates...)
		gone, pods := pods[0], pods[1:]
		By("deleting one pod, whose file comes back")
		stale := framework.Must(os.ReadFile(savedFile(gone)))
		s.deleteExplicitly(ctx, gone)
		By("damaging the files of the others, and losing their objects, while the kubelet is down")
		stopKubelet(ctx)
		Expect(os.WriteFile(savedFile(gone), stale, 0o600)).To(Succeed())
		for i, fault := range faults {
			content := framework.Must(os.ReadFile(savedFile(pods[i])))
			Expect(string(content)).To(HavePrefix(savedFormat))
			Expect(fault.damage(savedFile(pods[i]), content)).To(Succeed(), "make a file %s", fault.name)
			s.loseKey(ctx, pods[i])
			DeferCleanup(os.RemoveAll, savedFile(pods[i]))
		}
		log := kubeletLog()
		startKubelet(ctx, unchanged)
		for i, fault := range faults {
			By("checking the pod whose file is " + fault.name)
			s.awaitOrphaned(ctx, pods[i])
			expectUnusable(ctx, log, savedFile(pods[i]))
		}
		Expect(mustReadMetrics(ctx).FailedOperations()).To(HaveKeyWithValue(stateDirectory, BeEquivalentTo(len(faults))), guardErrors)
		Expect(savedFile(gone)).NotTo(BeAnExistingFile(), "the file of a pod that no longer exists")
		stayAlive(ctx, holdPeriod, pods...)

		By("restoring the objects: the files are written again")
		for _, pod := range pods {
			if info, err := os.Stat(savedFile(pod)); err == nil && info.IsDir() {
				Expect(os.Remove(savedFile(pod))).To(Succeed())
			}
			s.restoreKey(ctx, pod)
		}
		for _, pod := range pods {
			Eventually(os.ReadFile).WithContext(ctx).WithArguments(savedFile(pod)).WithTimeout(apiLag).
				Should(HavePrefix(savedFormat+"1 "), "the file of pod %s", pod)
		}
		stopKubelet(ctx)
		s.loseKey(ctx, pods...)
		startKubelet(ctx, unchanged)
		s.awaitVanished(ctx, pods...)
		s.restoreKey(ctx, pods...)
	})

	It("that is full keeps no pod from being protected", func(ctx SpecContext) {
		expectProtectedWithout(ctx, func(folder string) {
			runOnNode(ctx, "sh", "-c", "cat /dev/zero >"+filepath.Join(folder, "filler")+" || true")
		}, func(folder string) {
			runOnNode(ctx, "rm", filepath.Join(folder, "filler"))
		})
	})

	It("that is read-only keeps no pod from being protected", func(ctx SpecContext) {
		expectProtectedWithout(ctx, func(folder string) {
			runOnNode(ctx, "mount", "-o", "remount,ro", folder)
		}, func(folder string) {
			runOnNode(ctx, "mount", "-o", "remount,rw", folder)
		})
	})
})

// expectProtectedWithout checks what becomes of pods when the file system of the
// state directory takes nothing more: live, over a restart, and once it is repaired.
func expectProtectedWithout(ctx context.Context, spoil, repair func(folder string)) {
	GinkgoHelper()
	tolerate(stateDirectory)
	s := newScene(ctx)
	folder := nodeDir(ctx)
	runOnNode(ctx, "mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", folder)
	DeferCleanup(func(ctx context.Context) {
		// Not before the kubelet has left it.
		runOnNode(ctx, "umount", folder)
	})
	change := testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader + "stateDir: " + folder + "\n")}
	restartKubelet(ctx, change)
	saved := s.run(ctx, s.newPod("saved", protected))[0]
	file := func(pod *subject) string { return filepath.Join(folder, "pods", string(pod.uid)+".pod") }
	spoil(folder)

	By("changing a pod and starting another")
	log := kubeletLog()
	s.patch(ctx, saved, `{"metadata":{"labels":{"changed":"true"}}}`)
	unsaved := s.run(ctx, s.newPod("unsaved", protected))[0]
	for _, pod := range []*subject{saved, unsaved} {
		expectUnusable(ctx, log, file(pod))
		expectState(Default, ctx, pod, guard.Protected)
	}
	Expect(mustReadMetrics(ctx).FailedOperations()).To(HaveKey(stateDirectory), guardErrors)

	By("restarting the kubelet without the pods' objects")
	stopKubelet(ctx)
	s.loseKey(ctx, saved, unsaved)
	startKubelet(ctx, change)
	s.awaitVanished(ctx, saved)
	s.awaitOrphaned(ctx, unsaved)
	stayAlive(ctx, holdPeriod, saved, unsaved)

	By("restoring the objects")
	log = kubeletLog()
	for _, pod := range []*subject{saved, unsaved} {
		s.restoreKey(ctx, pod)
		expectUnusable(ctx, log, file(pod))
	}

	By("repairing the file system: what could not be written is written")
	repair(folder)
	for _, pod := range []*subject{saved, unsaved} {
		Eventually(provider.Node().Run).WithContext(ctx).WithArguments(ctx, "cat", file(pod)).WithTimeout(apiLag).
			Should(HavePrefix(savedFormat), "the file of pod %s", pod)
		s.deleteExplicitly(ctx, pod)
	}
	restartKubelet(ctx, unchanged)
}

// expectUnusable checks that a file of the state directory that failed is named in
// the kubelet's log and by an event on the node.
func expectUnusable(ctx context.Context, log func() string, file string) {
	GinkgoHelper()
	name := filepath.Base(file)
	expectNodeEvent(ctx, guard.EventSavedPodUnusable, name)
	Expect(log()).To(MatchRegexp(`state directory failed.*\n?.*`+name), "the kubelet's log")
}

// withFormat changes the number of a saved pod's format. Its checksum, which does
// not cover the first line, stays right.
func withFormat(content []byte, version int) []byte {
	_, rest, _ := bytes.Cut(content, []byte(" sha256:"))
	return append(fmt.Appendf(nil, "%s%d sha256:", savedFormat, version), rest...)
}

func runOnNode(ctx context.Context, command ...string) string {
	GinkgoHelper()
	return framework.Must(provider.Node().Run(ctx, command...))
}

// nodeDir makes a folder on the node, which the spec's end removes.
func nodeDir(ctx context.Context) string {
	GinkgoHelper()
	folder := strings.TrimSpace(runOnNode(ctx, "mktemp", "-d"))
	DeferCleanup(func(ctx context.Context) { runOnNode(ctx, "rm", "-rf", folder) })
	return folder
}

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
			requested := time.Now()
			s.deleteExplicitly(ctx, pod)
			took := time.Since(requested)
			framework.Progress("state directory's disk frozen: pod %s gone %.1f s after its deletion", pod.name, took.Seconds())
			Expect(took).To(BeNumerically("<", undelayed), "time until pod %s is gone", pod)
		}
		By("starting an unprotected and a protected pod")
		requested := time.Now()
		s.run(ctx, s.newPod("new-unprotected"))
		took := time.Since(requested)
		framework.Progress("state directory's disk frozen: unprotected pod serves after %.1f s", took.Seconds())
		Expect(took).To(BeNumerically("<", undelayed), "time until the unprotected pod serves")
		requested = time.Now()
		late := s.run(ctx, s.newPod("new-protected", protected))[0]
		framework.Progress("state directory's disk frozen: protected pod serves after %.1f s", time.Since(requested).Seconds())
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
