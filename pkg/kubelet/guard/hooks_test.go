package guard

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-base/metrics/legacyregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hooks calls every hook of hooks.go for the pod and returns the results.
func hooks(pod *v1.Pod, source *listerWatcher) map[string]any {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	Run(ctx, func(types.UID, bool) {})
	list := []*v1.Pod{pod}
	status, node := &v1.PodStatus{}, &v1.Node{}
	results := map[string]any{
		"Refuse":                Refuse(pod, Evicted, ""),
		"RefuseUID":             RefuseUID(pod.UID, VolumeUnmount, ""),
		"RefuseTermination":     RefuseTermination(pod, false, true, false),
		"RefuseSandboxChange":   RefuseSandboxChange(pod, 1),
		"RefuseContainerChange": RefuseContainerChange(pod, &pod.Spec.Containers[0], string(pod.UID)+"-c"),
		"RefuseCgroupRemoval":   RefuseCgroupRemoval([]string{"pod" + string(pod.UID)}),
		"CheckKill":             CheckKill(pod) != nil,
		"HoldVanished":          HoldVanished(apiSource, pod),
		"FilterStoppable":       len(FilterStoppable(list, Preempted, "")),
		"FilterUnprotected":     len(FilterUnprotected(list, Preempted)),
		"WatchSource":           WatchSource(source) != source,
		"ObserveSource":         ObserveSource(apiSource, []*v1.Pod{inPhase(pod, v1.PodFailed)})[0].Status.Phase,
		"SetNodeCondition":      SetNodeCondition(ctx, node),
		"Handler":               Handler() != nil,
	}
	CompletePodStatus(pod, &v1.PodStatus{}, status)
	lost := &v1.PodStatus{Phase: v1.PodFailed, ContainerStatuses: []v1.ContainerStatus{
		{Name: "app", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: statusUnknown}}},
	}}
	CorrectPhase(pod, lost)
	results["CorrectPhase"] = lost.Phase
	results["pod conditions"], results["node conditions"] = len(status.Conditions), len(node.Status.Conditions)
	AllowStop(pod, "c")
	AllowRestart(pod)
	AllowCompletion(pod.UID)
	return results
}

func TestHooks(t *testing.T) {
	stock := map[string]any{
		"Refuse": false, "RefuseUID": false, "RefuseTermination": false, "RefuseSandboxChange": false,
		"RefuseContainerChange": false, "RefuseCgroupRemoval": false, "CheckKill": false, "HoldVanished": false,
		"FilterStoppable": 1, "FilterUnprotected": 1, "WatchSource": false, "ObserveSource": v1.PodFailed, "CorrectPhase": v1.PodFailed,
		"SetNodeCondition": nil, "Handler": false, "pod conditions": 0, "node conditions": 0,
	}
	guarded := map[string]any{
		"Refuse": true, "RefuseUID": true, "RefuseTermination": true, "RefuseSandboxChange": true,
		"RefuseContainerChange": true, "RefuseCgroupRemoval": true, "CheckKill": true, "HoldVanished": true,
		"FilterStoppable": 0, "FilterUnprotected": 0, "WatchSource": true, "ObserveSource": v1.PodPhase(""), "CorrectPhase": v1.PodRunning,
		"SetNodeCondition": nil, "Handler": true, "pod conditions": 1, "node conditions": 1,
	}
	pod := protectedPod("p")
	t.Run("without a guard are those of the stock kubelet", func(t *testing.T) {
		defer Install(Install(nil))
		assert.Equal(t, stock, hooks(pod, &listerWatcher{}))
	})
	t.Run("with a guard are those of the guard", func(t *testing.T) {
		f := newFixture(t)
		defer Install(Install(f.Guard))
		f.running(pod)
		assert.Equal(t, guarded, hooks(pod, &listerWatcher{}))
		assert.Equal(t, Terminating, f.state(pod), "AllowCompletion")
		assert.Contains(t, f.stops, "c")
		assert.True(t, f.records[pod.UID].exemption.restart)
	})
}

func TestStart(t *testing.T) {
	defer func(path string) { configPath = path }(configPath)
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	AddFlags(fs)
	defer Install(Install(nil))

	t.Run("fails, and installs nothing, when the configuration cannot be read", func(t *testing.T) {
		require.NoError(t, fs.Parse([]string{"--guard-config=testdata/config/bad/unknown-cause.yaml"}))
		_, err := Start(t.TempDir(), "node-1", nil, &fakeEvents{}, newFakeRuntime())
		assert.ErrorContains(t, err, `--guard-config: testdata/config/bad/unknown-cause.yaml: allowedCauses[1]: Unsupported value: "Eviction"`)
		assert.Nil(t, Handler())
	})
	t.Run("installs the guard, once or again, and registers its metrics", func(t *testing.T) {
		require.NoError(t, fs.Parse([]string{"--guard-config="}))
		root, runtime := t.TempDir(), newFakeRuntime()
		for range 2 {
			service, err := Start(root, "node-1", nil, &fakeEvents{}, runtime)
			require.NoError(t, err)
			pod := protectedPod("p")
			runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
			require.ErrorIs(t, service.StopContainer(context.Background(), "p-uid-c", 0), ErrRefused)
		}
		info, err := os.Stat(filepath.Join(root, "guard"))
		require.NoError(t, err)
		assert.True(t, info.IsDir())
		families, err := legacyregistry.DefaultGatherer.Gather()
		require.NoError(t, err)
		names := map[string]bool{}
		for _, family := range families {
			names[family.GetName()] = true
		}
		for _, name := range []string{"refused_kills_total", "held_pods", "info"} {
			assert.True(t, names["kubelet_guard_"+name], name)
		}
	})
	t.Run("in mode Off leaves the runtime alone", func(t *testing.T) {
		require.NoError(t, fs.Parse([]string{"--guard-config=testdata/config/good/off-without-quotes.yaml"}))
		runtime := newFakeRuntime()
		service, err := Start(t.TempDir(), "node-1", nil, &fakeEvents{}, runtime)
		require.NoError(t, err)
		assert.Same(t, runtime, service)
	})
}
