package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

func TestKindDropIn(t *testing.T) {
	flags := func(t *testing.T, change testnode.KubeletChange) (string, *kindNode) {
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
		added, _ := flags(t, testnode.KubeletChange{})
		assert.Empty(t, added)
	})
	t.Run("a changed configuration keeps the rest", func(t *testing.T) {
		added, node := flags(t, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) { c.MaxPods = 7 }})
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
		added, node := flags(t, testnode.KubeletChange{GuardConfig: file})
		assert.Equal(t, "--guard-config="+kindFolder+"/guard.yaml", added)
		content, err := os.ReadFile(node.path(kindFolder + "/guard.yaml"))
		require.NoError(t, err)
		assert.Equal(t, "content", string(content))
	})
	t.Run("a missing one is the kubelet's to find out", func(t *testing.T) {
		added, _ := flags(t, testnode.KubeletChange{GuardConfig: "/no/such/file"})
		assert.Equal(t, "--guard-config=/no/such/file", added)
	})
}

func TestProcessesOfNodes(t *testing.T) {
	own := os.Getpid()
	process, err := procfs.NewProc(own)
	require.NoError(t, err)
	processes := machineProcesses{
		{Proc: process, namespaced: []uint64{uint64(own), 93, 1}, cgroups: []procfs.Cgroup{
			{Path: "/docker/0123/kubelet.slice/kubelet-kubepods.slice/cri-containerd-abc.scope"},
		}},
		{Proc: process, namespaced: []uint64{uint64(own)}},
	}
	assert.Equal(t, own, processes.find(93, "abc").PID)
	assert.Empty(t, processes.find(93, "def"), "the same number on another node")
	assert.Empty(t, processes.find(94, "abc"), "another process of the container")
	assert.Empty(t, processes.find(own, "abc"), "this machine's number")

	found, err := findProcesses()
	require.NoError(t, err)
	assert.True(t, slices.ContainsFunc(found, func(p machineProcess) bool { return p.PID == own }), "this process")
}
