package node

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// usedMemory is what the protected pod touches, in MiB, and leftMemory what the
	// reservation leaves to all pods: more than the eviction threshold, which is taken
	// from it for what can be allocated.
	usedMemory, leftMemory = 400, 300
	// limitFollows covers the minute after which the kubelet tries again to set the
	// limit of all pods.
	limitFollows = 100 * time.Second
)

// memoryReserved is the fault of a reservation that is too large, as it is on cgroup v2:
// the kubelet lowers the memory limit of the cgroup of all pods at its start, and the
// kernel kills in there until the rest fits. That ends with the first pod that dies, so
// there is no unprotected one. On v1 the kernel refuses such a limit.
func memoryReserved() incident {
	var kubepods string
	var before, reserved int64
	return incident{
		title:   "memory reserved, limit below what pods use",
		cgroup2: true,
		alone:   true,
		pod: []podOption{
			withArgs(fmt.Sprintf("--memory=%d", usedMemory)),
			func(pod *corev1.Pod) {
				guaranteed := corev1.ResourceList{
					// With less the pod writes to its pages for minutes before it serves.
					corev1.ResourceCPU:    resource.MustParse("300m"),
					corev1.ResourceMemory: resource.MustParse(fmt.Sprintf("%dMi", usedMemory+100)),
				}
				pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: guaranteed, Limits: guaranteed}
			},
		},
		fault: func(ctx context.Context, _ *scene, pods []*subject) {
			_, pod, err := podCgroup(pods[0].process)
			Expect(err).NotTo(HaveOccurred(), "find the cgroup of pod %s", pods[0])
			kubepods = filepath.Dir(pod)
			Expect(readMemory(kubepods, "memory.current")).To(BeNumerically(">", usedMemory<<20), "what the pods use")
			before = readMemory(kubepods, "memory.max")
			framework.Progress("%s: limit %d MiB, in use %d MiB", kubepods, before>>20, readMemory(kubepods, "memory.current")>>20)
			reserved = nodeCapacity(ctx).Memory().Value() - leftMemory<<20
			restartLeaving(ctx, corev1.ResourceMemory, (leftMemory-100)<<20, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
				c.SystemReserved = map[string]string{"memory": fmt.Sprint(reserved)}
			}})
			if variant == Stock {
				// The kubelet sets the limit in a goroutine of its own.
				Eventually(oomKills).WithContext(ctx).WithArguments(kubepods).WithTimeout(killTimeout).
					Should(BeNumerically(">", 0), "processes that the kernel killed in %s", kubepods)
			}
			framework.Progress("%s: limit %d MiB, in use %d MiB, processes killed by the kernel: %d", kubepods,
				readMemory(kubepods, "memory.max")>>20, readMemory(kubepods, "memory.current")>>20, oomKills(kubepods))
		},
		restarts: true,
		causes:   []guard.Cause{guard.AdmissionRejected, guard.MemoryLimitLowered},
		repair: func(context.Context, *scene, *subject) {
			Expect(readMemory(kubepods, "memory.max")).To(Equal(before), "the limit of all pods while the protected one uses more")
			Expect(oomKills(kubepods)).To(BeZero(), "processes that the kernel killed in %s", kubepods)
		},
		after: func(ctx context.Context) {
			requested := time.Now()
			capacity := nodeCapacity(ctx).Memory().Value()
			Eventually(func() int64 { return readMemory(kubepods, "memory.max") }).WithContext(ctx).WithTimeout(limitFollows).
				Should(Equal(capacity-reserved), "the limit of all pods follows when the pod is gone")
			framework.Progress("%s: limit %d MiB %.0f s after the pod was gone", kubepods, (capacity-reserved)>>20, time.Since(requested).Seconds())
		},
	}
}

// readMemory reads a figure of a cgroup, in bytes; "max" is the largest.
func readMemory(cgroup, file string) int64 {
	content := framework.Must(os.ReadFile(filepath.Join(cgroup, file)))
	if strings.TrimSpace(string(content)) == "max" {
		return 1<<63 - 1
	}
	var value int64
	_, err := fmt.Sscan(string(content), &value)
	Expect(err).NotTo(HaveOccurred(), "%s of %s: %q", file, cgroup, content)
	return value
}

// oomKills is how many processes the kernel has killed in a cgroup and below it.
func oomKills(cgroup string) int {
	content, err := os.ReadFile(filepath.Join(cgroup, "memory.events"))
	if err != nil {
		Expect(err).To(MatchError(fs.ErrNotExist), "read the cgroup's memory.events")
		return 0
	}
	kills := 0
	for line := range strings.Lines(string(content)) {
		_, _ = fmt.Sscanf(line, "oom_kill %d", &kills)
	}
	return kills
}
