package kubelettrial

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

// output has the kubelets of make kubelets.
const output = "../../../../_output"

// Lines of kubelet v1.36.3.
func TestRefusal(t *testing.T) {
	const validation = `E1130 19:31:52.730521       1 run.go:72] "command failed" err="failed to validate kubelet configuration, error: `
	const end = `, path: &TypeMeta{Kind:,APIVersion:,}"` + "\n"
	for name, test := range map[string]struct{ out, why, err string }{
		"nothing else":           {out: "I1130 codec.go:102] \"Using lenient decoding\"\n" + validation + plantedError + end},
		"another one before":     {out: validation + "[kubelet is configured to not run on a host using cgroup v1, " + plantedError + "]" + end, why: "kubelet is configured to not run on a host using cgroup v1"},
		"others around":          {out: validation + "[a \\\"quoted\\\" one, " + plantedError + ", memoryThrottlingFactor 2]" + end, why: `a "quoted" one, memoryThrottlingFactor 2`},
		"a feature gate":         {out: `E1130 run.go:72] "command failed" err="failed to set feature gates from initial flags-based config: unrecognized feature gate: NoSuchGate"`, why: "failed to set feature gates from initial flags-based config: unrecognized feature gate: NoSuchGate"},
		"a flag":                 {out: `E1130 run.go:72] "command failed" err="failed to parse kubelet flag: unknown flag: --pod-infra-container-image"`, why: "failed to parse kubelet flag: unknown flag: --pod-infra-container-image"},
		"nothing planted":        {out: validation + "something" + end, err: "did not refuse --max-pods=-1"},
		"a kubelet that started": {out: `E1130 run.go:72] "command failed" err="failed to run Kubelet: no runtime"`, err: "accepted --max-pods=-1"},
		"a panic":                {out: "Flag --max-pods has been deprecated\npanic: unrecognized feature gate: NoSuchGate\n\ngoroutine 1", why: "unrecognized feature gate: NoSuchGate"},
		"a crash":                {out: "SIGSEGV\n", err: "said nothing of its configuration: SIGSEGV"},
	} {
		t.Run(name, func(t *testing.T) {
			why, err := refusal(test.out)
			require.Equal(t, test.why, why)
			if test.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.err)
			}
		})
	}
}

// Every kubelet that is built; make test-kubelets builds those of all minor versions.
func TestAcceptsRunsAKubelet(t *testing.T) {
	kubelets, err := filepath.Glob(output + "/v1.*/kubelet")
	require.NoError(t, err)
	if len(kubelets) == 0 {
		t.Skip("no kubelet is built")
	}
	for _, kubelet := range kubelets {
		kubelet, err := filepath.Abs(kubelet)
		require.NoError(t, err)
		t.Run(filepath.Base(filepath.Dir(kubelet)), func(t *testing.T) { testAccepts(t, kubelet) })
	}
}

func testAccepts(t *testing.T, kubelet string) {
	const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\n"
	for name, test := range map[string]struct {
		config, dropIn string
		flags          []string
		why            string
	}{
		"what a node has":             {config: head + "featureGates: {InPlacePodVerticalScaling: true}\n", flags: []string{"--guard-config=/none", "--kubeconfig=/etc/none", "--node-ip", "10.0.0.1", "--v=4"}},
		"logs in JSON":                {config: head + "logging: {format: json}\n"},
		"a gate in the configuration": {config: head + "featureGates: {NoSuchGate: true}\n", why: "unrecognized feature gate: NoSuchGate"},
		"a gate in a drop-in":         {config: head, dropIn: head + "featureGates: {NoSuchGate: true}\n", why: "unrecognized feature gate: NoSuchGate"},
		"a gate in a flag":            {config: head, flags: []string{"--feature-gates=NoSuchGate=true"}, why: "unrecognized feature gate: NoSuchGate"},
		"a flag":                      {config: head, flags: []string{"--no-such-flag=1"}, why: "unknown flag: --no-such-flag"},
		"a value":                     {config: head + "memoryThrottlingFactor: 2.0\n", why: "invalid configuration: memoryThrottlingFactor 2 must be greater than 0 and less than or equal to 1.0"},
		"two values":                  {config: head + "memoryThrottlingFactor: 2.0\nkubeAPIBurst: -1\n", why: "memoryThrottlingFactor 2"},
	} {
		t.Run(name, func(t *testing.T) {
			root := host.Root(t.TempDir())
			arguments := append([]string{"/usr/bin/kubelet", "--config", "/var/lib/kubelet/config.yaml"}, test.flags...)
			require.NoError(t, root.Write("/var/lib/kubelet/config.yaml", []byte(test.config), 0o600))
			if test.dropIn != "" {
				require.NoError(t, root.Write("/etc/kubelet.d/10-own.conf", []byte(test.dropIn), 0o600))
				arguments = append(arguments, "--config-dir=/etc/kubelet.d")
			}
			why, err := Accepts(t.Context(), root, kubelet, host.Process{Arguments: arguments})
			require.NoError(t, err)
			if test.why == "" {
				require.Empty(t, why)
			}
			require.Contains(t, why, test.why)
			require.NotContains(t, strings.ToLower(why), "maxpods")
		})
	}
	t.Run("a configuration that is gone", func(t *testing.T) {
		_, err := Accepts(t.Context(), host.Root(t.TempDir()), kubelet, host.Process{Arguments: []string{"kubelet", "--config=/var/lib/kubelet/config.yaml"}})
		require.ErrorContains(t, err, "/var/lib/kubelet/config.yaml: no such file")
	})
}
