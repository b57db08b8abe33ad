package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// This file keeps the memory limits of the cgroups above the pods from falling
// below what is in use. On cgroup v2 the kernel obeys such a limit: it reclaims,
// and then kills in that cgroup until the rest fits (memory_max_write). Which
// limits of running pods, and of cgroups above them, the kubelet writes, and what
// lowering one does (upstream v1.36.3, pkg/kubelet/cm):
//
//	limit                 of                      written by, when                                 lowered below use
//	memory.max            kubepods                enforceNodeAllocatableCgroups, at each start,    kills: kept here
//	                                              again each minute after an error
//	memory.max            kubepods                createNodeAllocatableCgroups, when it lacks a    kills: kept here
//	                                              controller
//	memory.max            burstable, besteffort   UpdateCgroups with QOSReserved, each minute,     kills: kept here
//	                                              when a pod starts and when one is killed
//	memory.max            reserved cgroups        enforceExistingCgroup, at each start             kills, in the runtime and
//	                                                                                               its shims: kept here
//	memory.max            pod                     EnsureExists, when it is made: nothing in use    no
//	memory.max            pod, container          in-place resize: declared, and compared with     no
//	                                              what is in use before (validatePodResizeAction)
//	memory.limit_in_bytes all of these, v1        the same                                         refused by the kernel (EBUSY)
//	memory.high           pod, container          MemoryQoS, when they are made                    slows down
//	memory.min, low       kubepods, QoS, reserved MemoryQoS                                        no limit
//	pids.max              kubepods, reserved      with memory.max                                  new processes fail
//	hugetlb.*.max         kubepods, QoS, reserved with memory.max                                  refused by the kernel (EBUSY)
//	cpu.weight, cpu.max   all                     with memory.max                                  slows down
//	cpuset.cpus           kubepods, container     static and none CPU manager                      moves
//
// All of these but those of containers pass Update and Create of the cgroup
// manager, where the hook is. Those of containers are the runtime's.

const (
	// headroomShare is the part of a limit that has to stay free for the limit to
	// fit: the kernel kills as well when the pods grow while it is written, or
	// right after.
	headroomShare = 64
	// reclaimInterval is how long after a failure a cgroup is not reclaimed again:
	// QOSReserved tries twice with every pod that starts.
	reclaimInterval = 30 * time.Second
	// reclaimTimeout bounds one attempt, reclaimStep one write of it.
	reclaimTimeout = 10 * time.Second
	reclaimStep    = 256 << 20
	// limitRetryInterval is the retry period of limits that upstream tries once. It is
	// that of upstream's other retries.
	limitRetryInterval = time.Minute
)

// eventLimitFailed is upstream's reason (pkg/kubelet/events) for a limit above
// the pods that could not be set.
const eventLimitFailed = "FailedNodeAllocatableEnforcement"

// memoryLimits has the limits that were refused.
type memoryLimits struct {
	mu sync.Mutex
	// reclaimed is when reclaim last failed to free enough in a cgroup, by path.
	reclaimed map[string]time.Time
	// later has what upstream would not retry; tried is when it was last run.
	later []func() error
	tried time.Time
	// write makes the kernel reclaim pages of a cgroup; writeReclaim but in tests.
	write func(path string, amount int64) error
	// hostRoot: see Dependencies.HostRoot.
	hostRoot string
}

// SetCgroupResources runs set, which writes the resources of a cgroup, unless the
// memory limit among them would have the kernel kill a protected pod. Then the
// limit is kept, by setting *memory to 0, which upstream's cgroup manager takes for
// "not set", and everything else is written; the error wraps
// ErrRefused. cgroup is the name in upstream's form, path its folder in the
// hierarchy of the memory controller, *memory the limit in bytes.
//
// Limits of pods are the author's and pass. So does every limit on cgroup v1,
// where the kernel itself refuses one that is too low.
func (g *Guard) SetCgroupResources(cgroup []string, path string, memory *int64, set func() error) error {
	limit := *memory
	if g.config.Mode == Off || limit <= 0 || isPodCgroup(cgroup) {
		return set()
	}
	path = filepath.Join(g.limits.hostRoot, path)
	use, err := readMemoryUse(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && use.fits(limit) {
		return set()
	}
	refusal := g.refuseLimit(cgroup, path, limit, use, err)
	if refusal == nil {
		return set()
	}
	*memory = 0
	if err := set(); err != nil {
		return err
	}
	return refusal
}

// UpdateReserved runs update, which sets the limits of a cgroup that is reserved
// for the system or the kubelet. Upstream tries that once and does not start
// when it fails. When the guard refused a limit, UpdateReserved returns nil, and Run
// retries each minute.
func (g *Guard) UpdateReserved(update func() error) error {
	err := update()
	if !errors.Is(err, ErrRefused) {
		return err
	}
	g.limits.mu.Lock()
	g.limits.later = append(g.limits.later, update)
	g.limits.tried = g.clock.Now()
	g.limits.mu.Unlock()
	klog.InfoS("A memory limit of a reserved cgroup is set when it fits", "err", err)
	if g.recorder != nil {
		about := g.nodeReference()
		g.recorder.Event(&about, v1.EventTypeWarning, eventLimitFailed, fmt.Sprintf("The memory limit of a reserved cgroup is set when it fits: %v", err))
	}
	return nil
}

// retryLimits runs the updates that UpdateReserved could not finish.
func (g *Guard) retryLimits() {
	now := g.clock.Now()
	g.limits.mu.Lock()
	if len(g.limits.later) == 0 || now.Sub(g.limits.tried) < limitRetryInterval {
		g.limits.mu.Unlock()
		return
	}
	later := g.limits.later
	g.limits.later, g.limits.tried = nil, now
	g.limits.mu.Unlock()
	var again []func() error
	for _, update := range later {
		err := update()
		switch {
		case errors.Is(err, ErrRefused):
			again = append(again, update)
		case err != nil:
			klog.ErrorS(err, "The limits of a reserved cgroup could not be set, retrying in a minute")
			again = append(again, update)
		default:
			klog.InfoS("The memory limit of a reserved cgroup fits and is set")
		}
	}
	g.limits.mu.Lock()
	g.limits.later = append(g.limits.later, again...)
	g.limits.mu.Unlock()
}

// refuseLimit decides about a limit that does not fit. unreadable is the error when it is
// unknown what is in use. It returns nil when the limit may be written, perhaps because
// it fits by now.
func (g *Guard) refuseLimit(cgroup []string, path string, limit int64, use memoryUse, unreadable error) error {
	pods, doubt := g.atStake(cgroup, path)
	doubt = doubt && g.enforces(MemoryLimitLowered)
	if len(pods) == 0 && !doubt {
		return nil
	}
	if unreadable == nil && (doubt || g.wouldRefuse(pods)) {
		if use = g.reclaim(path, limit, use); use.fits(limit) {
			return nil
		}
	}
	what := fmt.Sprintf("the memory limit of cgroup %s would fall to %d MiB while %d MiB are in use", "/"+strings.Join(cgroup, "/"), limit>>20, use.current>>20)
	if unreadable != nil {
		what = fmt.Sprintf("the memory limit of cgroup %s would fall to %d MiB, and what is in use cannot be read: %v", "/"+strings.Join(cgroup, "/"), limit>>20, unreadable)
	}
	refused := doubt
	for _, pod := range pods {
		if g.refuse(pod.record, MemoryLimitLowered, what+", and the kernel would kill in it", pod.alive) {
			refused = true
		}
	}
	if !refused {
		return nil
	}
	return fmt.Errorf("%s: %w", what, ErrRefused)
}

// podAtStake is a pod that the guard knows as protected. alive is nil when it is not
// known whether it has processes.
type podAtStake struct {
	record *podRecord
	alive  func() bool
}

// wouldRefuse reports whether the limit is to be refused on behalf of one of the pods if
// it runs. It records nothing.
func (g *Guard) wouldRefuse(pods []podAtStake) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, pod := range pods {
		if Decide(g.factsLocked(pod.record, MemoryLimitLowered)) == Refused {
			return true
		}
	}
	return false
}

// atStake returns the protected pods in which the kernel might kill. For a cgroup above
// pods they are those that have processes in it, by the kernel. For any other, such as
// that of the runtime, they are all of the node: a container does not outlive its shim.
// Before the first message of the API source, those count that an earlier kubelet saved,
// or whose sandboxes have the labels. doubt: of some it is unknown whether they are
// protected.
func (g *Guard) atStake(cgroup []string, path string) (pods []podAtStake, doubt bool) {
	below, abovePods := []types.UID(nil), isAbovePods(cgroup)
	if abovePods {
		var err error
		if below, err = podsBelow(path, 2); err != nil {
			klog.ErrorS(err, "Cannot read the pods of a cgroup whose memory limit would fall; all of the node count", "path", path)
			abovePods = false
		}
	}
	var alive func() bool
	unknown := map[types.UID]bool{}
	g.mu.Lock()
	if abovePods {
		alive = isAlive
		for _, uid := range below {
			_, unprotected := g.unprotected[uid]
			if r, known := g.savedOrKnownLocked(uid); r != nil {
				pods = append(pods, podAtStake{r, alive})
			} else if !known && !unprotected {
				unknown[uid] = true
			}
		}
	} else {
		for uid := range g.loaded {
			_, _ = g.savedOrKnownLocked(uid)
		}
		for _, r := range g.records {
			pods = append(pods, podAtStake{r, nil})
		}
	}
	incomplete := len(unknown) > 0 || !abovePods && g.pass == 0
	g.mu.Unlock()
	if !incomplete || g.runtime == nil {
		return pods, false
	}
	sandboxes, err := g.readySandboxes()
	if err != nil {
		g.runtimeFailed(err, "path", path)
		return pods, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for uid, pod := range sandboxes {
		_, unprotected := g.unprotected[uid]
		if unprotected || g.records[uid] != nil || abovePods && !unknown[uid] || !g.Protects(pod) {
			continue
		}
		r := newRecord(uid, pod.Namespace, pod.Name)
		g.records[uid] = r
		pods = append(pods, podAtStake{r, alive})
	}
	return pods, false
}

// savedOrKnownLocked returns the record of a protected pod, which it creates for one
// that is only saved so far. known: the guard knows whether the pod is protected.
func (g *Guard) savedOrKnownLocked(uid types.UID) (r *podRecord, known bool) {
	if r := g.records[uid]; r != nil {
		return r, true
	}
	saved, ok := g.loaded[uid]
	if !ok {
		return nil, false
	}
	if saved.Evidence != nil || !g.protectsObject(saved.Pod) {
		return nil, true
	}
	r = g.recordLocked(saved.Pod)
	// Until the first message of the API source. A record without an object is tidied up,
	// and the file with it, which that message is still to be compared with.
	r.present = true
	return r, true
}

// readySandboxes returns the pods that the labels of all ready sandboxes describe, in
// one query.
func (g *Guard) readySandboxes() (map[types.UID]*v1.Pod, error) {
	var sandboxes []*runtimeapi.PodSandbox
	err := g.queryRuntime(func(ctx context.Context) (err error) {
		sandboxes, err = g.runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{
			State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	pods := map[types.UID]*v1.Pod{}
	for _, s := range sandboxes {
		uid := types.UID(s.Labels[podUIDLabel])
		if uid == "" || s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		pods[uid] = podOfSandbox(uid, s.Labels, s.Annotations)
	}
	return pods, nil
}

// isAbovePods reports whether a cgroup is that of all pods or of those of one QoS
// class (upstream's defaultNodeAllocatableCgroupName and qosContainerManagerImpl).
func isAbovePods(cgroup []string) bool {
	if len(cgroup) == 0 {
		return false
	}
	switch cgroup[len(cgroup)-1] {
	case "kubepods", "burstable", "besteffort":
		return true
	}
	return false
}

// isPodCgroup reports whether a cgroup is that of one pod (upstream's
// GetPodCgroupNameSuffix).
func isPodCgroup(cgroup []string) bool {
	return len(cgroup) > 1 && strings.HasPrefix(cgroup[len(cgroup)-1], "pod") && isAbovePods(cgroup[:len(cgroup)-1])
}

// podsBelow returns the pods whose cgroups are at most depth levels below the
// path, and have processes.
func podsBelow(path string, depth int) ([]types.UID, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var pods []types.UID
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		folder := filepath.Join(path, entry.Name())
		if uid, _, ok := podOfCgroup(entry.Name()); ok {
			if isPopulated(folder) {
				pods = append(pods, uid)
			}
			continue
		}
		if depth > 1 {
			more, err := podsBelow(folder, depth-1)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			pods = append(pods, more...)
		}
	}
	return pods, nil
}

// isPopulated reports whether a process is in the cgroup or below it. An unreadable one
// counts as populated, unless it is gone.
func isPopulated(path string) bool {
	events, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return !bytes.Contains(events, []byte("populated 0"))
}

// memoryUse is the memory of a cgroup by the kernel, in bytes.
type memoryUse struct {
	max, current int64
}

// fits reports whether a limit kills nothing: it does not lower the present one, or it
// has room for what is in use and a little more.
func (u memoryUse) fits(limit int64) bool { return limit >= u.max || u.excess(limit) <= 0 }

// excess is how much has to be given back before the limit fits.
func (u memoryUse) excess(limit int64) int64 { return u.current - (limit - limit/headroomShare) }

// readMemoryUse reads what is in use in a cgroup of v2 and below it. The error is
// fs.ErrNotExist for one of v1, for the root, which has no limit, and for one that
// is not there.
func readMemoryUse(path string) (memoryUse, error) {
	var use memoryUse
	for file, value := range map[string]*int64{"memory.max": &use.max, "memory.current": &use.current} {
		content, err := os.ReadFile(filepath.Join(path, file))
		if err != nil {
			return memoryUse{}, err
		}
		text := strings.TrimSpace(string(content))
		if text == "max" {
			*value = math.MaxInt64
			continue
		}
		if *value, err = strconv.ParseInt(text, 10, 64); err != nil {
			return memoryUse{}, fmt.Errorf("%s: %w", filepath.Join(path, file), err)
		}
	}
	return use, nil
}

// reclaim makes the kernel reclaim page cache until the limit fits, and returns what is
// in use then. memory.reclaim, since Linux 5.19, kills nothing. It is not used for more
// than can be reclaimed, so that pods do not lose their cache for a limit that does not
// fit even so; what could be swapped out does not count. On older kernels all that is in
// use counts, page cache included: a lower limit there would reclaim it as well, but
// when that fails, for example because of dirty pages on a slow disk, it kills.
func (g *Guard) reclaim(path string, limit int64, use memoryUse) memoryUse {
	now := g.clock.Now()
	g.limits.mu.Lock()
	waits := now.Sub(g.limits.reclaimed[path]) < reclaimInterval
	g.limits.mu.Unlock()
	if waits {
		return use
	}
	for !use.fits(limit) && g.clock.Since(now) < reclaimTimeout {
		excess := use.excess(limit)
		if cache, err := readPageCache(path); err != nil || cache < excess {
			break
		}
		// An error means that less was reclaimed than requested.
		err := g.limits.write(path, min(excess, reclaimStep))
		before := use.current
		after, readErr := readMemoryUse(path)
		if readErr != nil {
			break
		}
		if use = after; err != nil && use.current >= before {
			break
		}
	}
	if !use.fits(limit) {
		g.limits.mu.Lock()
		g.limits.reclaimed[path] = g.clock.Now()
		g.limits.mu.Unlock()
	}
	return use
}

func writeReclaim(path string, amount int64) error {
	file, err := os.OpenFile(filepath.Join(path, "memory.reclaim"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(strconv.FormatInt(amount, 10))
	return errors.Join(err, file.Close())
}

// readPageCache returns how many bytes of a cgroup can be given back without swap:
// pages of files, but not those of a tmpfs, and kernel caches.
func readPageCache(path string) (int64, error) {
	stat, err := os.ReadFile(filepath.Join(path, "memory.stat"))
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(stat)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch key {
		case "inactive_file", "active_file", "slab_reclaimable":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", filepath.Join(path, "memory.stat"), err)
			}
			sum += n
		}
	}
	return sum, nil
}
