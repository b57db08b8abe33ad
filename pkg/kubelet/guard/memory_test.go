package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const mib = int64(1 << 20)

// cgroupTree is a cgroup v2 hierarchy of files, and the kubelet's way of setting a
// limit in it.
type cgroupTree struct {
	t    testing.TB
	root string
	// killed has the cgroups in which the kernel would have killed, written how
	// often resources were written at all.
	killed  []string
	written int
	// requested has the amounts that were to be reclaimed.
	requested []int64
}

// newCgroupTree makes a hierarchy in which a node's pods use 2500 MiB.
func newCgroupTree(t testing.TB) *cgroupTree {
	c := &cgroupTree{t: t, root: t.TempDir()}
	c.write("kubepods", "memory.max", "max\n")
	for _, cgroup := range []string{"kubepods", "kubepods/burstable", "kubepods/besteffort", "system", "podruntime"} {
		c.use(cgroup, 2500*mib)
		c.write(cgroup, "memory.max", "max\n")
	}
	return c
}

func (c *cgroupTree) path(cgroup string) string { return filepath.Join(c.root, cgroup) }

func (c *cgroupTree) write(cgroup, file, content string) {
	require.NoError(c.t, os.MkdirAll(c.path(cgroup), 0o755))
	require.NoError(c.t, os.WriteFile(filepath.Join(c.path(cgroup), file), []byte(content), 0o644))
}

func (c *cgroupTree) read(cgroup, file string) string {
	content, err := os.ReadFile(filepath.Join(c.path(cgroup), file))
	require.NoError(c.t, err)
	return string(content)
}

// use lets a cgroup use memory, none of which can be given back.
func (c *cgroupTree) use(cgroup string, bytes int64) {
	c.write(cgroup, "memory.current", fmt.Sprintln(bytes))
	c.write(cgroup, "memory.stat", fmt.Sprintf("anon %d\ninactive_file 0\nactive_file 0\nslab_reclaimable 0\n", bytes))
}

// cache makes a part of what a cgroup uses page cache.
func (c *cgroupTree) cache(cgroup string, bytes int64) {
	c.write(cgroup, "memory.stat", fmt.Sprintf("anon 1\nfile 1\nshmem 7\ninactive_file %d\nactive_file 0\nslab_reclaimable %d\n", bytes-mib, mib))
}

// pod makes the cgroup of a pod, with processes or without.
func (c *cgroupTree) pod(below string, uid types.UID, processes bool) {
	events := "populated 0\nfrozen 0\n"
	if processes {
		events = "populated 1\nfrozen 0\n"
	}
	c.write(filepath.Join(below, "pod"+string(uid)), "cgroup.events", events)
}

// set sets the memory limit of a cgroup as upstream's cgroup manager does, and
// kills as the kernel does.
func (c *cgroupTree) set(g *Guard, cgroup []string, limit int64) error {
	memory := limit
	path := c.path(filepath.Join(cgroup...))
	return g.SetCgroupResources(cgroup, path, &memory, func() error {
		c.written++
		if memory == 0 {
			return nil
		}
		if use, err := readMemoryUse(path); err == nil && memory > 0 && memory < use.current {
			c.killed = append(c.killed, filepath.Join(cgroup...))
		}
		return os.WriteFile(filepath.Join(path, "memory.max"), fmt.Appendln(nil, memory), 0o644)
	})
}

// reclaims makes the kernel reclaim what is requested.
func (c *cgroupTree) reclaims(g *Guard) {
	g.limits.write = func(path string, amount int64) error {
		c.requested = append(c.requested, amount)
		use, err := readMemoryUse(path)
		require.NoError(c.t, err)
		return os.WriteFile(filepath.Join(path, "memory.current"), fmt.Appendln(nil, use.current-amount), 0o644)
	}
}

var (
	kubepods   = []string{"kubepods"}
	burstable  = []string{"kubepods", "burstable"}
	bestEffort = []string{"kubepods", "besteffort"}
)

func TestMemoryLimitAboveProtectedPods(t *testing.T) {
	pod := protectedPod("app")
	for name, test := range map[string]struct {
		config []func(*Configuration)
		// prepare changes a node with one running protected pod.
		prepare func(f *fixture, c *cgroupTree)
		cgroup  []string
		limit   int64
		refused bool
		// killed: the limit is written and the kernel kills, as with the stock kubelet.
		killed bool
	}{
		"below what the pods use":     {cgroup: kubepods, limit: 2000 * mib, refused: true},
		"hardly above what they use":  {cgroup: kubepods, limit: 2510 * mib, refused: true},
		"with room for what they use": {cgroup: kubepods, limit: 2600 * mib},
		"no limit":                    {cgroup: kubepods, limit: -1},
		"not set":                     {cgroup: kubepods, limit: 0},
		"raised, and still too low":   {prepare: func(f *fixture, c *cgroupTree) { c.write("kubepods", "memory.max", "1048576\n") }, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"the same again":              {prepare: func(f *fixture, c *cgroupTree) { c.write("kubepods", "memory.max", fmt.Sprintln(2500*mib)) }, cgroup: kubepods, limit: 2500 * mib},
		"of the pod's QoS class":      {cgroup: burstable, limit: 2000 * mib, refused: true},
		"of another QoS class":        {cgroup: bestEffort, limit: 2000 * mib, killed: true},
		"reserved":                    {cgroup: []string{"system"}, limit: 100 * mib, refused: true},
		"reserved, named like a pod":  {cgroup: []string{"podruntime"}, limit: 100 * mib, refused: true},
		"of the pod itself": {prepare: func(f *fixture, c *cgroupTree) {
			c.use("kubepods/burstable/podapp-uid", 50*mib)
			c.write("kubepods/burstable/podapp-uid", "memory.max", "max\n")
		}, cgroup: []string{"kubepods", "burstable", "podapp-uid"}, limit: 10 * mib, killed: true},
		"of a Guaranteed pod": {prepare: func(f *fixture, c *cgroupTree) {
			c.use("kubepods/podapp-uid", 50*mib)
			c.write("kubepods/podapp-uid", "memory.max", "max\n")
		}, cgroup: []string{"kubepods", "podapp-uid"}, limit: 10 * mib, killed: true},
		"mode Audit":                   {config: []func(*Configuration){inMode(Audit)}, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"mode Off":                     {config: []func(*Configuration){inMode(Off)}, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"cause exempt":                 {config: []func(*Configuration){allowing(MemoryLimitLowered)}, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"explicit deletion":            {prepare: func(f *fixture, c *cgroupTree) { f.observe(deleted(pod)) }, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"no process of the pod":        {prepare: func(f *fixture, c *cgroupTree) { c.pod("kubepods/burstable", "app-uid", false) }, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"no pod":                       {prepare: func(f *fixture, c *cgroupTree) { require.NoError(t, os.RemoveAll(c.path("kubepods/burstable"))) }, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"cgroup v1, or not there":      {prepare: func(f *fixture, c *cgroupTree) { require.NoError(t, os.Remove(c.path("kubepods/memory.max"))) }, cgroup: kubepods, limit: 2000 * mib},
		"no longer protected":          {prepare: func(f *fixture, c *cgroupTree) { f.running(plainPod("app")) }, cgroup: kubepods, limit: 2000 * mib, killed: true},
		"what is in use is unreadable": {prepare: func(f *fixture, c *cgroupTree) { c.write("kubepods", "memory.current", "many\n") }, cgroup: kubepods, limit: 2000 * mib, refused: true},
		"reserved, nothing runs": {prepare: func(f *fixture, c *cgroupTree) {
			f.runtime.setContainer(pod, runtimeapi.ContainerState_CONTAINER_EXITED)
		}, cgroup: []string{"system"}, limit: 100 * mib, killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, test.config...)
			c := newCgroupTree(t)
			c.pod("kubepods/burstable", "app-uid", true)
			f.running(protectedPod("app"))
			if test.prepare != nil {
				test.prepare(f, c)
			}
			err := c.set(f.Guard, test.cgroup, test.limit)
			assert.Equal(t, 1, c.written, "resources are written, with the limit or without")
			if test.refused {
				assert.ErrorIs(t, err, ErrRefused)
				assert.Empty(t, c.killed)
				assert.Equal(t, "max\n", c.read(filepath.Join(test.cgroup...), "memory.max"))
				assert.Equal(t, []Cause{MemoryLimitLowered}, f.held(pod))
				assert.ErrorIs(t, c.set(f.Guard, test.cgroup, test.limit), ErrRefused, "the second time")
				assert.Equal(t, float64(1), f.series()["refused_kills_total{cause=MemoryLimitLowered}"])
				return
			}
			assert.NoError(t, err)
			assert.Empty(t, f.held(pod))
			if test.killed {
				assert.Equal(t, []string{filepath.Join(test.cgroup...)}, c.killed)
			} else {
				assert.Empty(t, c.killed)
			}
		})
	}
}

// The kubelet tries again each minute. The hold lasts as long, and the limit follows
// when the pod is gone.
func TestMemoryLimitFollows(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	c.pod("kubepods", "app-uid", true)
	pod := protectedPod("app")
	f.running(pod)
	for range 10 {
		require.ErrorIs(t, c.set(f.Guard, kubepods, 2000*mib), ErrRefused)
		assert.Equal(t, []Cause{MemoryLimitLowered}, f.held(pod))
		f.pass(time.Minute)
	}
	assert.Equal(t, []string{"Warning KillRefused Pod/app"}, f.events.take())
	f.observe(deleted(pod))
	c.pod("kubepods", "app-uid", false)
	c.use("kubepods", 100*mib)
	require.NoError(t, c.set(f.Guard, kubepods, 2000*mib))
	assert.Equal(t, fmt.Sprintln(2000*mib), c.read("kubepods", "memory.max"))
	assert.Empty(t, f.held(pod))
	assert.Empty(t, c.killed)
}

// A hold ends when the kubelet has stopped trying: it was restarted with the former
// reservation.
func TestMemoryLimitHoldEnds(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	c.pod("kubepods", "app-uid", true)
	pod := protectedPod("app")
	f.running(pod)
	require.ErrorIs(t, c.set(f.Guard, kubepods, 2000*mib), ErrRefused)
	require.NoError(t, c.set(f.Guard, kubepods, 4000*mib))
	f.pass(holdLinger + tidyInterval)
	assert.Empty(t, f.held(pod))
}

func TestPageCacheIsReclaimedFirst(t *testing.T) {
	for name, test := range map[string]struct {
		cache     int64
		write     func(path string, amount int64) error
		requested []int64
		refused   bool
	}{
		"there is enough":               {cache: 1000 * mib, requested: []int64{reclaimStep, reclaimStep, 2500*mib - (2000*mib - 2000*mib/headroomShare) - 2*reclaimStep}},
		"there is not enough":           {cache: 500 * mib, refused: true},
		"the kernel has no such file":   {cache: 1000 * mib, write: func(path string, amount int64) error { return writeReclaim(path, amount) }, refused: true},
		"the kernel gives back nothing": {cache: 1000 * mib, write: func(string, int64) error { return errors.New("resource temporarily unavailable") }, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			f, c := newFixture(t), newCgroupTree(t)
			c.pod("kubepods", "app-uid", true)
			c.cache("kubepods", test.cache)
			f.running(protectedPod("app"))
			c.reclaims(f.Guard)
			if test.write != nil {
				f.limits.write = test.write
			}
			err := c.set(f.Guard, kubepods, 2000*mib)
			assert.Equal(t, test.refused, errors.Is(err, ErrRefused), "%v", err)
			assert.Equal(t, test.requested, c.requested)
			assert.Empty(t, c.killed)
			assert.Equal(t, test.refused, f.held(protectedPod("app")) != nil && len(f.held(protectedPod("app"))) > 0, "held")
		})
	}
	_, err := os.Stat("memory.reclaim")
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

// QOSReserved tries twice with every pod that starts.
func TestPageCacheIsNotReclaimedAllTheTime(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	c.pod("kubepods/burstable", "app-uid", true)
	c.cache("kubepods/burstable", 1000*mib)
	f.running(protectedPod("app"))
	attempts := 0
	f.limits.write = func(string, int64) error { attempts++; return errors.New("busy") }
	for range 20 {
		require.ErrorIs(t, c.set(f.Guard, burstable, 2000*mib), ErrRefused)
	}
	assert.Equal(t, 1, attempts)
	f.clock.Step(reclaimInterval)
	require.ErrorIs(t, c.set(f.Guard, burstable, 2000*mib), ErrRefused)
	assert.Equal(t, 2, attempts)
}

// What is not to be protected costs nobody anything.
func TestMemoryLimitsWithoutProtectedPodsQueryNothing(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	c.reclaims(f.Guard)
	c.cache("kubepods", 1000*mib)
	c.pod("kubepods", "app-uid", true)
	f.running(plainPod("app"))
	require.NoError(t, c.set(f.Guard, kubepods, 2000*mib))
	assert.Equal(t, []string{"kubepods"}, c.killed, "as with the stock kubelet")
	assert.Empty(t, c.requested)
	assert.Zero(t, f.runtime.queries())
}

// The container manager starts before the first message of the API source.
func TestMemoryLimitBeforeTheFirstMessage(t *testing.T) {
	pod := protectedPod("app")
	static := protectedPod("app")
	static.Annotations[sourceAnnotation] = "file"
	save := func(f *fixture, saved savedPod) { f.loaded[pod.UID] = saved }
	run := func(f *fixture, pod *v1.Pod) { f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING) }
	for name, test := range map[string]struct {
		prepare func(f *fixture)
		refused bool
		queries int
	}{
		"saved":                      {func(f *fixture) { save(f, savedPod{Pod: pod}) }, true, 0},
		"saved with its evidence":    {func(f *fixture) { save(f, savedPod{Pod: pod, Evidence: &Evidence{Kind: ReleaseFile}}) }, false, 0},
		"by its sandbox":             {func(f *fixture) { run(f, pod) }, true, 1},
		"sandbox without the label":  {func(f *fixture) { run(f, plainPod("app")) }, false, 1},
		"static":                     {func(f *fixture) { run(f, static) }, false, 1},
		"another pod's sandbox":      {func(f *fixture) { run(f, protectedPod("other")) }, false, 1},
		"the runtime has no sandbox": {func(*fixture) {}, false, 1},
		"the runtime fails":          {func(f *fixture) { f.runtime.fail(errors.New("away")) }, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f, c := newFixture(t), newCgroupTree(t)
			c.pod("kubepods", pod.UID, true)
			test.prepare(f)
			err := c.set(f.Guard, kubepods, 2000*mib)
			assert.Equal(t, test.refused, errors.Is(err, ErrRefused), "%v", err)
			assert.Equal(t, test.refused, len(c.killed) == 0)
			assert.Equal(t, test.queries, f.runtime.queries())
		})
	}
}

// A record made of a file is the pod's own once the API source has shown it,
// however long that takes.
func TestMemoryLimitLeavesTheSavedPodAlone(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	pod := protectedPod("app")
	f.loaded[pod.UID] = savedPod{Pod: pod}
	c.pod("kubepods", pod.UID, true)
	require.ErrorIs(t, c.set(f.Guard, kubepods, 2000*mib), ErrRefused)
	assert.Equal(t, []Cause{MemoryLimitLowered}, f.held(pod))
	f.pass(time.Hour)
	require.Contains(t, f.loaded, pod.UID)
	f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	restored := f.ObserveSource(apiSource, nil)
	require.Len(t, restored, 1)
	assert.Equal(t, []Cause{PodVanished}, f.held(pod))
}

// The kubelet starts although a reserved cgroup cannot have its limit, and the guard
// sets it when it fits.
func TestReservedCgroupGetsItsLimitLater(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	f.running(protectedPod("app"))
	update := func() error { return c.set(f.Guard, []string{"system"}, 100*mib) }
	require.NoError(t, f.UpdateReserved(update))
	assert.Equal(t, []string{
		"Warning FailedNodeAllocatableEnforcement Node/node-1",
		"Warning KillRefused Pod/app",
	}, f.events.take())
	retry := func(after time.Duration) int {
		before := c.written
		for ; after > 0; after -= tidyInterval {
			f.pass(tidyInterval)
			f.retryLimits()
		}
		return c.written - before
	}
	assert.Equal(t, 3, retry(3*time.Minute), "one try each minute")
	assert.Equal(t, "max\n", c.read("system", "memory.max"))
	assert.Equal(t, []Cause{MemoryLimitLowered}, f.held(protectedPod("app")))
	c.use("system", 50*mib)
	assert.Equal(t, 1, retry(time.Minute))
	assert.Equal(t, fmt.Sprintln(100*mib), c.read("system", "memory.max"))
	assert.Zero(t, retry(5*time.Minute), "after it is set")
	assert.Empty(t, c.killed)
	assert.Empty(t, f.held(protectedPod("app")))
}

// Errors of the kernel are upstream's, as is EBUSY on cgroup v1.
func TestErrorsOfReservedCgroupsAreNotHidden(t *testing.T) {
	f, c := newFixture(t), newCgroupTree(t)
	f.running(protectedPod("app"))
	busy := errors.New("unable to set memory limit to 104857600 (current usage: 2621440000, peak usage: 2621440000)")
	assert.Equal(t, busy, f.UpdateReserved(func() error { return busy }))
	memory := 100 * mib
	assert.Equal(t, busy, f.UpdateReserved(func() error {
		return f.SetCgroupResources([]string{"system"}, c.path("system"), &memory, func() error { return busy })
	}), "an error next to the refusal")
	f.clock.Step(time.Hour)
	f.retryLimits()
	assert.Zero(t, memory)
}
