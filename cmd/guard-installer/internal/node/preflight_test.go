package node

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/pkg/rollout"
)

// The runtime is the one that the kubelet uses, wherever it is configured.
func TestTheContainerRuntimeOfTheKubelet(t *testing.T) {
	const own, docker = "/run/own.sock", "/run/containerd/containerd.sock"
	forbidden := &kubelet.ForbiddenError{Path: "/configz"}
	for name, c := range map[string]struct {
		prepare func(w *world)
		want    string
		refused string
	}{
		"it names none":            {func(w *world) { w.noConfig = forbidden }, docker, ""},
		"a drop-in, no /configz":   {func(w *world) { w.noConfig = forbidden; w.configDropIn(own) }, own, ""},
		"a drop-in, and /configz":  {func(w *world) { w.config.ContainerRuntimeEndpoint = "unix://" + own; w.configDropIn(own) }, own, ""},
		"/configz alone":           {func(w *world) { w.config.ContainerRuntimeEndpoint = "unix://" + own }, own, ""},
		"another path of the same": {func(w *world) { w.config.ContainerRuntimeEndpoint = own; w.configDropIn(own) }, own, ""},
		"files that have changed": {func(w *world) { w.config.ContainerRuntimeEndpoint = "unix://" + docker; w.configDropIn(own) }, "",
			"the kubelet runs with the container runtime at unix:///run/containerd/containerd.sock, and its flags and files name unix:///run/own.sock, which have changed since it was started: restart it first"},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			c.prepare(w)
			installer := w.installer(request(rollout.Audit))
			asked := map[string]bool{}
			installer.Running = func(_ context.Context, socket string) ([]cri.Container, error) {
				asked[socket] = true
				return w.containers, nil
			}
			report := step(t, installer)
			if c.refused != "" {
				assert.Equal(t, rollout.ReasonRuntime, report.Reason)
				assert.Contains(t, report.Message, c.refused)
				assert.Empty(t, asked)
				return
			}
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
			assert.Equal(t, map[string]bool{c.want: true}, asked)
		}))
	}
}

// configDropIn has the kubelet run with a drop-in of its configuration.
func (w *world) configDropIn(socket string) {
	w.file("/etc/kubelet.d/10.conf", "containerRuntimeEndpoint: unix://"+socket+"\n")
	w.file(kubeadmFile, "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --config-dir=/etc/kubelet.d\n")
	require.NoError(w.t, w.Reload(context.Background()))
	require.NoError(w.t, w.start())
}

func TestANodeUnderPressureIsNotChanged(t *testing.T) {
	timeless(func(t *testing.T) {
		for _, condition := range []corev1.NodeConditionType{corev1.NodeDiskPressure, corev1.NodeMemoryPressure, corev1.NodePIDPressure} {
			w := newWorld(t)
			w.node.Status.Conditions = append(w.node.Status.Conditions, corev1.NodeCondition{Type: condition, Status: corev1.ConditionTrue})
			report := w.run(request(rollout.Audit))
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Equal(t, rollout.ReasonPressure, report.Reason)
			assert.Contains(t, report.Message, "node n reports "+string(condition)+", and its kubelet evicts pods")
			w.node.Status.Conditions[1].Status = corev1.ConditionFalse
			assert.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
		}
	})(t)
}

func TestTheChangeCausesNoDiskPressure(t *testing.T) {
	for name, c := range map[string]struct {
		config  kubelet.Config
		message string
	}{
		"room":             {kubelet.Config{EvictionHard: map[string]string{"nodefs.available": "1Mi", "memory.available": "100Gi"}}, ""},
		"a share":          {kubelet.Config{EvictionHard: map[string]string{"nodefs.available": "100%"}}, "below the kubelet's eviction threshold (nodefs.available: 100%), and pods would be evicted"},
		"a quantity":       {kubelet.Config{EvictionHard: map[string]string{"imagefs.available": "1Ei"}}, "below the kubelet's eviction threshold (imagefs.available: 1Ei)"},
		"a soft threshold": {kubelet.Config{EvictionSoft: map[string]string{"nodefs.available": "100%"}}, "nodefs.available: 100%"},
		"not understood":   {kubelet.Config{EvictionHard: map[string]string{"nodefs.available": "much"}}, `the kubelet's eviction threshold of nodefs.available: "much" is neither a quantity nor a share`},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			w.config = c.config
			for _, dir := range []string{"/var/lib/kubelet", "/var/lib/containerd"} {
				w.file(dir+"/x", "")
			}
			report := w.run(request(rollout.Audit))
			if c.message == "" {
				assert.Equal(t, rollout.Done, report.Phase, report.Message)
				return
			}
			assert.Equal(t, rollout.ReasonSpace, report.Reason)
			assert.Contains(t, report.Message, c.message)
			assert.Equal(t, 1, w.started)
		}))
	}
}

// The kubelet's folders on another file system than InstallDir are not filled by the change.
func TestAnotherFileSystemHasNoThreshold(t *testing.T) {
	w := newWorld(t)
	w.file("/var/lib/kubelet/x", "")
	system, err := w.root.FileSystem("/var/lib/kubelet/x")
	require.NoError(t, err)
	v := &view{kubeletConfig: kubelet.Config{EvictionHard: map[string]string{"nodefs.available": "100%"}}}
	i := w.installer(request(rollout.Audit))
	text, err := i.belowThreshold(v, system, 1)
	require.NoError(t, err)
	require.Contains(t, text, "nodefs.available")
	system.Device++
	text, err = i.belowThreshold(v, system, 1)
	require.NoError(t, err)
	require.Empty(t, text)
}

func TestNothingIsQueriedWhileNoKubeletRuns(t *testing.T) {
	timeless(func(t *testing.T) {
		for _, dropIn := range []bool{false, true} {
			w := newWorld(t)
			if dropIn {
				require.Equal(t, rollout.Done, w.run(request(rollout.Enforce)).Phase)
			}
			w.pid, w.running = 0, nil
			installer := w.installer(request(rollout.Audit))
			installer.Ask = func(context.Context, string, string) (kubelet.Answer, string, error) {
				t.Error("someone was queried")
				return kubelet.Answer{}, "", errors.New("asked")
			}
			report := step(t, installer)
			assert.Equal(t, rollout.Waiting, report.Phase)
			assert.Equal(t, rollout.ReasonKubelet, report.Reason, report.Message)
		}
	})(t)
}

func TestMisfit(t *testing.T) {
	for name, c := range map[string]struct{ stock, running, server, want string }{
		"the same":                     {"v1.36.3", "v1.36.3+guard.0.1.0", "v1.36.3", ""},
		"the next minor":               {"v1.37.0", "v1.36.3+guard.0.1.0", "v1.37.1", ""},
		"nobody knows what runs":       {"v1.36.3", "", "v1.36.3", ""},
		"newer than the API server":    {"v1.38.0", "v1.36.3+guard.0.1.0", "v1.36.3", "it is newer than the API server (v1.36.3)"},
		"a patch newer than it":        {"v1.36.9", "v1.36.3+guard.0.1.0", "v1.36.3", ""},
		"two minors in one step":       {"v1.38.0", "v1.36.3+guard.0.1.0", "v1.38.3", "it is more than 1 minor version away from the kubelet that runs"},
		"two minors back":              {"v1.34.0", "v1.36.3+guard.0.1.0", "v1.36.3", "it is more than 1 minor version away from the kubelet that runs"},
		"too old for the API server":   {"v1.35.0", "v1.36.3+guard.0.1.0", "v1.39.0", "it is more than 3 minor versions older than the API server (v1.39.0)"},
		"an odd version":               {"1.x", "", "v1.36.3", `the version "1.x" of the stock kubelet is not understood`},
		"an odd version of the server": {"v1.36.3", "", "", `the version "" of the API server is not understood`},
		"an odd version that runs":     {"v1.36.3", "x", "v1.36.3", `the version "x" of the kubelet that runs is not understood`},
	} {
		assert.Equal(t, c.want, misfit(c.stock, c.running, c.server), name)
	}
}

func TestAStockKubeletThatDoesNotFitNeedsAYes(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
		require.NoError(t, w.root.Write("/usr/bin/kubelet", program("version=v1.38.0"), 0o755))
		report := w.run(request(rollout.Stock))
		assert.Equal(t, rollout.Refused, report.Phase)
		assert.Equal(t, rollout.ReasonVersion, report.Reason)
		assert.Contains(t, report.Message, "now v1.36.3+guard.0.1.0, mode Audit runs, then the stock kubelet v1.38.0 (/usr/bin/kubelet) would: it is newer than the API server (v1.36.3). Install a stock kubelet that fits, or accept this one (--stock-version=v1.38.0)")
		assert.Equal(t, 2, w.started)

		// The yes is for one version.
		report = w.run(with(request(rollout.Stock), func(r *rollout.Request) { r.StockVersion = "v1.37.0" }))
		assert.Equal(t, rollout.Refused, report.Phase)
		report = w.run(with(request(rollout.Stock), func(r *rollout.Request) { r.StockVersion = "v1.38.0" }))
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, "v1.38.0", report.Now.Version)

		// A node that has it already is done.
		assert.Equal(t, rollout.Done, w.run(request(rollout.Stock)).Phase)
	})(t)
}

// A kubelet that cannot be tried does not keep the node from the change, which shows it.
func TestAConfigurationThatCannotBeTried(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.accepts = errors.New("no room")
		report := w.run(request(rollout.Audit))
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	})(t)
}
