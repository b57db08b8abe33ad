package kubelet

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

func TestConfigOf(t *testing.T) {
	root := host.Root(t.TempDir())
	for name, text := range map[string]string{
		"/etc/plain.yaml":   "kind: KubeletConfiguration\n",
		"/etc/kubelet.yaml": "containerRuntimeEndpoint: unix:///run/file.sock\ntlsCertFile: /etc/file.crt\nevictionHard: {nodefs.available: 5%, memory.available: 1Gi}\n",
		"/etc/d/10.conf":    "containerRuntimeEndpoint: unix:///run/10.sock\nevictionHard: {nodefs.available: 7%}\n",
		"/etc/d/20/x.conf":  `{"containerRuntimeEndpoint": "unix:///run/20.sock"}`,
		"/etc/d/90.yaml":    "containerRuntimeEndpoint: unix:///run/not-read.sock\n",
		"/etc/bad/1.conf":   "containerRuntimeEndpoint: [\n",
	} {
		require.NoError(t, root.Write(name, []byte(text), 0o644))
	}
	config := func(arguments ...string) (Config, error) {
		return ConfigOf(root, host.Process{Arguments: append([]string{"kubelet"}, arguments...)})
	}
	for want, arguments := range map[string][]string{
		"":                       {"--config=/etc/plain.yaml"},
		"unix:///run/file.sock":  {"--config", "/etc/kubelet.yaml"},
		"unix:///run/20.sock":    {"--config=/etc/kubelet.yaml", "--config-dir=/etc/d"},
		"unix:///run/flag.sock":  {"--config=/etc/kubelet.yaml", "--config-dir=/etc/d", "--container-runtime-endpoint=unix:///run/flag.sock"},
		"unix:///run/flag2.sock": {"--container-runtime-endpoint", "unix:///run/flag2.sock"},
	} {
		got, err := config(arguments...)
		require.NoError(t, err)
		assert.Equal(t, want, got.ContainerRuntimeEndpoint, "%v", arguments)
	}
	got, err := config("--config-dir=/etc/d")
	require.NoError(t, err)
	assert.Equal(t, "unix:///run/20.sock", got.ContainerRuntimeEndpoint, "a base is not needed")

	got, err = config("--config=/etc/kubelet.yaml", "--config-dir=/etc/d")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"nodefs.available": "7%", "memory.available": "1Gi"}, got.EvictionHard)
	assert.Equal(t, "/etc/file.crt", got.TLSCertFile)
	got, err = config("--config=/etc/kubelet.yaml", "--eviction-hard=memory.available<100Mi,nodefs.available<3Gi", "--tls-cert-file=/x")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"nodefs.available": "3Gi", "memory.available": "100Mi"}, got.EvictionHard)
	assert.Equal(t, "/x", got.TLSCertFile)

	for _, arguments := range []string{"--config=/gone", "--config-dir=/gone", "--config-dir=/etc/bad"} {
		_, err = config(arguments)
		assert.ErrorContains(t, err, "configuration", arguments)
	}
	_, err = config("--config-dir=/etc/bad")
	assert.ErrorContains(t, err, "/etc/bad/1.conf", "the error names the file")
}

func TestConfigOfTheKubeletThatRuns(t *testing.T) {
	client, _ := serve(t, map[string]string{"/configz": `{"kubeletconfig":{"containerRuntimeEndpoint":"unix:///run/a.sock","evictionHard":{"nodefs.available":"10%"}}}`})
	config, err := client.Config(context.Background())
	require.NoError(t, err)
	assert.Equal(t, Config{ContainerRuntimeEndpoint: "unix:///run/a.sock", EvictionHard: map[string]string{"nodefs.available": "10%"}}, config)
	client, _ = serve(t, map[string]string{"/configz": "{}"})
	_, err = client.Config(context.Background())
	assert.ErrorContains(t, err, "no kubeletconfig")
}
