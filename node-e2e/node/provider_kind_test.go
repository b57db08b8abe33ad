package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

func TestKindDropIn(t *testing.T) {
	flags := func(t *testing.T, change KubeletChange) (string, *kindNode) {
		node := &kindNode{root: t.TempDir(), config: []byte("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupRoot: /kubelet\n")}
		require.NoError(t, os.Mkdir(node.path("/run"), 0o755))
		require.NoError(t, os.MkdirAll(node.path(kindFolder+"/left-over"), 0o755))
		dropIn, err := kindKubeletControl{node}.dropIn(context.Background(), change)
		require.NoError(t, err)
		assert.NoDirExists(t, node.path(kindFolder+"/left-over"))
		assert.Contains(t, dropIn, "\nRestart=no\n")
		before, after, found := strings.Cut(dropIn, "ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS")
		require.True(t, found, dropIn)
		assert.NotContains(t, before, "EnvironmentFile")
		return strings.TrimSpace(after), node
	}
	t.Run("no change", func(t *testing.T) {
		added, _ := flags(t, KubeletChange{})
		assert.Empty(t, added)
	})
	t.Run("a changed configuration keeps the rest", func(t *testing.T) {
		added, node := flags(t, KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) { c.MaxPods = 7 }})
		assert.Equal(t, "--config="+kindFolder+"/config.yaml", added)
		content, err := os.ReadFile(node.path(kindFolder + "/config.yaml"))
		require.NoError(t, err)
		var config kubeletconfig.KubeletConfiguration
		require.NoError(t, yaml.UnmarshalStrict(content, &config))
		assert.Equal(t, "/kubelet", config.CgroupRoot)
		assert.EqualValues(t, 7, config.MaxPods)
		assert.Equal(t, "KubeletConfiguration", config.Kind)
	})
	t.Run("a guard configuration of this machine is copied", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "guard.yaml")
		require.NoError(t, os.WriteFile(file, []byte("content"), 0o600))
		added, node := flags(t, KubeletChange{GuardConfig: file})
		assert.Equal(t, "--guard-config="+kindFolder+"/guard.yaml", added)
		content, err := os.ReadFile(node.path(kindFolder + "/guard.yaml"))
		require.NoError(t, err)
		assert.Equal(t, "content", string(content))
	})
	t.Run("a missing one is the kubelet's to find out", func(t *testing.T) {
		added, _ := flags(t, KubeletChange{GuardConfig: "/no/such/file"})
		assert.Equal(t, "--guard-config=/no/such/file", added)
	})
}

func TestProcessesOfNodes(t *testing.T) {
	p := parseProcessStatus("Name:\tpause\nUmask:\t0022\nPid:\t4711\nNSpid:\t4711\t93\t1\n")
	assert.Equal(t, machineProcess{ids: []int{4711, 93, 1}, name: "pause"}, p)
	const uid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	for _, cgroup := range []string{
		"/docker/0123/kubelet/kubepods/burstable/pod" + uid + "/abc",
		"/docker/0123/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod6ba7b810_9dad_11d1_80b4_00c04fd430c8.slice/cri-containerd-abc.scope",
	} {
		p.cgroup = cgroup
		assert.True(t, p.inPod(uid), cgroup)
		assert.True(t, p.in("abc"), cgroup)
		assert.False(t, p.inPod("7ba7b810-9dad-11d1-80b4-00c04fd430c8"), cgroup)
	}

	own, err := findProcesses()
	require.NoError(t, err)
	var found bool
	for _, p := range own {
		if p.ids[0] == os.Getpid() {
			found = true
			alive, err := p.identity().Alive()
			require.NoError(t, err)
			assert.True(t, alive)
		}
	}
	assert.True(t, found, "this process")
}

func TestParseDigest(t *testing.T) {
	const table = "REF                          TYPE                                       DIGEST       SIZE  PLATFORMS   LABELS\n" +
		"localhost/guard/workload:dev application/vnd.oci.image.manifest.v1+json sha256:0a1b  4 MiB linux/amd64 io.cri-containerd.image=managed\n"
	digest, err := parseDigest(table, "localhost/guard/workload:dev")
	require.NoError(t, err)
	assert.Equal(t, "sha256:0a1b", digest)
	_, err = parseDigest(table, "localhost/guard/pause:dev")
	assert.ErrorContains(t, err, "localhost/guard/pause:dev")
}
