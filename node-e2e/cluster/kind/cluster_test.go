package kind

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/images"
)

var (
	clusterFlag = flag.String("cluster", "", "name of a kind cluster that is up, with the pools stock and guarded; empty skips its tests")
	outputFlag  = flag.String("output", filepath.Join("..", "..", "_output"), "folder that it was made from")
)

// attached returns the cluster of the flags.
func attached(t *testing.T) *Cluster {
	if *clusterFlag == "" {
		t.Skip("needs a cluster: go run ./node-e2e/guard-e2e kind up --name=NAME, then -cluster=NAME")
	}
	c, err := Attach(t.Context(), *outputFlag, *clusterFlag)
	require.NoError(t, err)
	return c
}

func TestClusterKnowsItsNodes(t *testing.T) {
	c := attached(t)
	require.Equal(t, c.Name()+"-control-plane", c.ControlPlane().Name())
	require.Empty(t, c.Pool(""))
	require.Nil(t, c.Node("absent"))
	for _, node := range c.Nodes() {
		require.Same(t, node, c.Node(node.Name()))
		object, err := c.Client().CoreV1().Nodes().Get(t.Context(), node.Name(), metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, node.Pool(), object.Labels[PoolLabel])
		require.Equal(t, node.Guarded(), strings.Contains(object.Status.NodeInfo.KubeletVersion, "+guard."))
		require.Contains(t, object.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: node.Address()})
	}
}

func TestNodeRunsPrograms(t *testing.T) {
	node := attached(t).Pool("guarded")[0]
	output, err := node.Exec(t.Context(), "sh", "-c", "echo out; echo err >&2; exit 3")
	require.Equal(t, "out\n", output)
	require.ErrorContains(t, err, "err")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, exit.ExitCode())

	output, err = node.ExecInput(t.Context(), strings.NewReader("in"), "cat")
	require.NoError(t, err)
	require.Equal(t, "in", output)
}

func TestNodeFileIsReplacedWhole(t *testing.T) {
	node := attached(t).Pool("guarded")[0]
	local := filepath.Join(t.TempDir(), "program")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	require.NoError(t, os.WriteFile(local, content, 0o600))
	const remote = "/var/tmp/copied/program"
	require.NoError(t, node.CopyTo(t.Context(), local, remote, 0o755))
	t.Cleanup(func() { _, _ = node.Exec(context.Background(), "rm", "-r", "/var/tmp/copied") })
	got, err := node.Exec(t.Context(), "sh", "-c", "ls -A /var/tmp/copied; stat -c '%a %s' "+remote)
	require.NoError(t, err)
	require.Equal(t, "program\n755 16777216\n", got)
	got, err = node.Exec(t.Context(), "cat", remote)
	require.NoError(t, err)
	require.Equal(t, string(content), got)
}

// The kubelet comes and goes, and the container runtime keeps its containers.
func TestNodeKubeletRestarts(t *testing.T) {
	c := attached(t)
	for _, node := range []*Node{c.Pool("stock")[0], c.Pool("guarded")[0]} {
		before, err := node.Containers(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, before)
		for _, container := range before {
			require.NotEmpty(t, container.ID)
			require.NotEmpty(t, container.PodUID)
			require.NotEmpty(t, container.PodNamespace)
			require.NotEmpty(t, container.PodName)
			require.NotEmpty(t, container.Name)
			require.Positive(t, container.PID)
			require.WithinDuration(t, time.Now(), container.StartedAt, 24*time.Hour)
		}
		main, err := node.Exec(t.Context(), "systemctl", "show", "--property=MainPID", "kubelet")
		require.NoError(t, err)
		require.NoError(t, node.RestartKubelet(t.Context()))
		again, err := node.Exec(t.Context(), "systemctl", "show", "--property=MainPID", "kubelet")
		require.NoError(t, err)
		require.NotEqual(t, main, again)
		after, err := node.Containers(t.Context())
		require.NoError(t, err)
		require.Equal(t, before, after)
	}
}

// A node that is cut off keeps its address and what runs on it.
func TestNodeIsCutOffAndBack(t *testing.T) {
	node := attached(t).Pool("guarded")[0]
	kubelet := net.JoinHostPort(node.Address(), "10250")
	reachable := func() error {
		connection, err := net.DialTimeout("tcp", kubelet, 2*time.Second)
		if err == nil {
			err = connection.Close()
		}
		return err
	}
	require.NoError(t, reachable())
	address, err := node.Exec(t.Context(), "ip", "-4", "addr", "show", "eth0")
	require.NoError(t, err)

	t.Cleanup(func() { _ = node.Reconnect(context.Background()) })
	require.NoError(t, node.Disconnect(t.Context()))
	require.Error(t, reachable())
	containers, err := node.Containers(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, containers)
	require.NoError(t, node.Reconnect(t.Context()))
	require.NoError(t, poll(t.Context(), 30*time.Second, 100*time.Millisecond, func(context.Context) error { return reachable() }))
	again, err := node.Exec(t.Context(), "ip", "-4", "addr", "show", "eth0")
	require.NoError(t, err)
	require.Equal(t, address, again)
}

func TestNodeIsPaused(t *testing.T) {
	node := attached(t).Pool("stock")[0]
	t.Cleanup(func() { _ = node.Unpause(context.Background()) })
	require.NoError(t, node.Pause(t.Context()))
	_, err := node.Containers(t.Context())
	require.ErrorContains(t, err, "is paused", "what the engine says")
	require.NoError(t, node.Unpause(t.Context()))
	_, err = node.Containers(t.Context())
	require.NoError(t, err)
}

func TestLoadedImageIsInTheNodes(t *testing.T) {
	c := attached(t)
	program := filepath.Join(*outputFlag, "node", "bin", "pause")
	archive := filepath.Join(t.TempDir(), "image.tar")
	file, err := os.Create(archive)
	require.NoError(t, err)
	const name = "localhost/guard/loaded:dev"
	require.NoError(t, images.Write(file, images.Program(name, program)))
	require.NoError(t, file.Close())
	has := func(node *Node) bool {
		list, err := node.Exec(t.Context(), "ctr", "--namespace=k8s.io", "images", "list", "--quiet")
		require.NoError(t, err)
		return strings.Contains(list, name)
	}
	t.Cleanup(func() {
		for _, node := range c.Nodes() {
			_, _ = node.Exec(context.Background(), "ctr", "--namespace=k8s.io", "images", "rm", name)
		}
	})
	require.NoError(t, c.LoadImage(t.Context(), archive, c.ControlPlane()))
	require.True(t, has(c.ControlPlane()))
	require.False(t, has(c.Pool("stock")[0]))
	require.NoError(t, c.LoadImage(t.Context(), archive))
	for _, node := range c.Nodes() {
		require.True(t, has(node), node.Name())
	}
}

func TestLogsAreCollected(t *testing.T) {
	c := attached(t)
	dir := t.TempDir()
	require.NoError(t, c.CollectLogs(t.Context(), dir))
	for _, name := range []string{"nodes.yaml", "pods.yaml", "events.yaml"} {
		require.FileExists(t, filepath.Join(dir, name))
	}
	for _, node := range c.Nodes() {
		for name, want := range map[string]string{
			"kubelet.log":    "kubelet",
			"containerd.log": "containerd",
			"journal.log":    "systemd",
			"serial.log":     "Multi-User System",
			"pods.tar":       "kube-proxy",
		} {
			content, err := os.ReadFile(filepath.Join(dir, node.Name(), name))
			require.NoError(t, err)
			require.Contains(t, string(content), want, "%s of %s", name, node.Name())
		}
	}
}

func TestAttachNamesAClusterThatIsNotUp(t *testing.T) {
	_, err := Attach(t.Context(), t.TempDir(), "absent")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "cluster absent is not up")
	require.NoError(t, Remove(t.Context(), t.TempDir(), "absent"))
}

func TestPollTellsWhatWasSeenLast(t *testing.T) {
	err := poll(t.Context(), 50*time.Millisecond, time.Millisecond, func(context.Context) error { return io.ErrNoProgress })
	require.ErrorIs(t, err, io.ErrNoProgress)
	calls := 0
	err = poll(t.Context(), time.Minute, time.Millisecond, func(context.Context) error {
		calls++
		return final{io.ErrClosedPipe}
	})
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.Equal(t, 1, calls)
	require.NoError(t, poll(t.Context(), time.Minute, time.Millisecond, func(context.Context) error {
		calls++
		if calls < 4 {
			return errors.New("not yet")
		}
		return nil
	}))
}
