package guard

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestExemption(t *testing.T) {
	add := func(cause Cause) func(*exemption) { return func(e *exemption) { e.add(cause) } }
	revoke := func(causes ...Cause) func(*exemption) { return func(e *exemption) { e.revokeEnd(causes...) } }
	both := exemption{end: Evicted, restart: true}
	for name, test := range map[string]struct {
		before exemption
		change func(*exemption)
		after  exemption
	}{
		"a cause that ends the pod":                 {exemption{}, add(Evicted), exemption{end: Evicted}},
		"a second one: the first end stands":        {exemption{end: Evicted}, add(PodVanished), exemption{end: Evicted}},
		"the pod ended by itself":                   {exemption{}, add(completed), exemption{end: completed}},
		"the pod ended by itself while it is ended": {exemption{end: Evicted}, add(completed), exemption{end: Evicted}},
		"a lost cgroup":                             {exemption{}, add(PodCgroupMissing), exemption{restart: true}},
		"a changed sandbox":                         {exemption{}, add(SandboxChanged), exemption{restart: true}},
		"a changed sandbox while the pod is ended":  {exemption{end: Evicted}, add(SandboxChanged), both},
		"an end during a restart":                   {exemption{restart: true}, add(Evicted), both},
		"a cause that stops one container":          {exemption{}, add(ContainerHashChanged), exemption{}},
		"a volume":                                  {exemption{}, add(VolumeUnmount), exemption{}},
		"the last line of defence":                  {exemption{}, add(RuntimeStop), exemption{}},
		"the end was wrong":                         {exemption{end: PodVanished}, revoke(PodVanished, OrphanedRuntimePod), exemption{}},
		"another end was wrong":                     {exemption{end: Evicted}, revoke(PodVanished, OrphanedRuntimePod), exemption{end: Evicted}},
		"the end was wrong, during a restart":       {both, revoke(Evicted), exemption{restart: true}},
		"no end, and one was wrong":                 {exemption{restart: true}, revoke(Evicted), exemption{restart: true}},
	} {
		t.Run(name, func(t *testing.T) {
			e := test.before
			test.change(&e)
			assert.Equal(t, test.after, e)
		})
	}
}

func TestAddReportsWhetherThePodEnds(t *testing.T) {
	for _, cause := range append(Causes(), completed) {
		var e exemption
		ends := e.add(cause)
		assert.Equal(t, e.end != "", ends, cause)
	}
}

func TestWhatAnExemptionCovers(t *testing.T) {
	for _, cause := range Causes() {
		assert.False(t, exemption{}.covers(cause), cause)
		assert.True(t, exemption{end: Evicted}.covers(cause), cause)
		assert.True(t, exemption{end: completed}.covers(cause), cause)
		assert.Equal(t, cause == RuntimeStop, exemption{restart: true}.covers(cause), cause)
	}
}
