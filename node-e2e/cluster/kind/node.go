package kind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// kubeletStart is how long a kubelet may take from its start until it is healthy; it
// takes half a second, and more where many pods are to be taken over.
const kubeletStart = 2 * time.Minute

// containerdSocket is a path of the node.
const containerdSocket = "/run/containerd/containerd.sock"

// Node is a node of a cluster. Its methods may be called concurrently.
type Node struct {
	name    string
	pool    string
	guarded bool
	address string
	engine  engine
}

// Name is the name of the Node object, and of the container.
func (n *Node) Name() string { return n.name }

// Pool is the name of the node's pool, "" for the control plane.
func (n *Node) Pool() string { return n.pool }

// Guarded reports whether the node came up with the guarded kubelet.
func (n *Node) Guarded() bool { return n.guarded }

// Address is the node's IP address in the cluster's network.
func (n *Node) Address() string { return n.address }

// Exec runs a program in the node and returns what it printed. The error carries what
// it printed to stderr, and wraps an *exec.ExitError.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	return n.engine.docker(ctx, nil, append([]string{"exec", "--privileged", n.name}, args...)...)
}

// ExecInput is like Exec for a program that reads its standard input.
func (n *Node) ExecInput(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	return n.engine.docker(ctx, stdin, append([]string{"exec", "--privileged", "--interactive", n.name}, args...)...)
}

// CopyTo copies a file into the node. It is written next to its place and renamed, so
// that a program that runs from the file before is not in the way, and nobody sees a
// part of it.
func (n *Node) CopyTo(ctx context.Context, local, remote string, mode fs.FileMode) error {
	file, err := os.Open(local)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	partial := path.Join(path.Dir(remote), "."+path.Base(remote)+".partial")
	const script = `set -e
mkdir -p "$(dirname "$1")"
cat > "$1"
[ "$(stat -c %s "$1")" = "$4" ] || { rm -f "$1"; echo "not all of it arrived" >&2; exit 1; }
chmod "$3" "$1"
mv -f "$1" "$2"`
	_, err = n.ExecInput(ctx, file, "sh", "-c", script, "sh",
		partial, remote, fmt.Sprintf("%o", mode.Perm()), strconv.FormatInt(info.Size(), 10))
	if err != nil {
		return fmt.Errorf("copying %s to %s:%s: %w", local, n.name, remote, err)
	}
	return nil
}

// RestartKubelet restarts the kubelet and waits until it is healthy. If it does not
// become so, the error has the last lines of its log.
func (n *Node) RestartKubelet(ctx context.Context) error {
	if _, err := n.Exec(ctx, "systemctl", "restart", "kubelet"); err != nil {
		return err
	}
	return n.awaitKubelet(ctx)
}

func (n *Node) awaitKubelet(ctx context.Context) error {
	const script = `for i in $(seq %d); do
  curl --silent --fail --max-time 1 --output /dev/null http://127.0.0.1:10248/healthz && exit 0
  sleep 0.1
done
journalctl --no-pager --lines=20 --unit=kubelet >&2
exit 1`
	ctx, cancel := context.WithTimeout(ctx, kubeletStart+10*time.Second)
	defer cancel()
	if _, err := n.Exec(ctx, "sh", "-c", fmt.Sprintf(script, int(kubeletStart/(100*time.Millisecond)))); err != nil {
		return fmt.Errorf("the kubelet of %s is not healthy: %w", n.name, err)
	}
	return nil
}

// pauseAttempts is how long Pause tries. On cgroup v1, runc gives up early where
// processes start all the time, as they do on a busy node.
const pauseAttempts = 30 * time.Second

// Pause stops all processes of the node where they are, pods included.
func (n *Node) Pause(ctx context.Context) error {
	return poll(ctx, pauseAttempts, 100*time.Millisecond, func(ctx context.Context) error {
		_, err := n.engine.docker(ctx, nil, "pause", n.name)
		if err != nil && !strings.Contains(err.Error(), "unable to freeze") {
			return final{err}
		}
		return err
	})
}

// Unpause lets the processes go on.
func (n *Node) Unpause(ctx context.Context) error {
	_, err := n.engine.docker(ctx, nil, "unpause", n.name)
	return err
}

// Disconnect takes the network from the node, which keeps its address. All else in the
// node goes on. It needs an engine on this machine, and root.
func (n *Node) Disconnect(ctx context.Context) error { return n.setLink(ctx, netlink.LinkSetDown) }

// Reconnect gives the network back.
func (n *Node) Reconnect(ctx context.Context) error { return n.setLink(ctx, netlink.LinkSetUp) }

// setLink changes the engine's end of the node's network cable.
func (n *Node) setLink(ctx context.Context, set func(netlink.Link) error) error {
	output, err := n.Exec(ctx, "cat", "/sys/class/net/eth0/iflink")
	if err != nil {
		return err
	}
	index, err := strconv.Atoi(strings.TrimSpace(output))
	if err != nil {
		return fmt.Errorf("link of %s: %w", n.name, err)
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Errorf("the other end of the link of %s is not on this machine: %w", n.name, err)
	}
	if link.Type() != "veth" {
		return fmt.Errorf("the other end of the link of %s is not on this machine: link %d is a %s", n.name, index, link.Type())
	}
	if err := set(link); err != nil {
		return fmt.Errorf("link of %s: %w", n.name, err)
	}
	return nil
}

// Containers returns the containers of pods that run on the node, as its runtime sees
// them, whatever the API says, sorted by their names. Their PIDs are the node's. It works
// while the node is disconnected, but not while it is paused.
func (n *Node) Containers(ctx context.Context) (containers []testnode.Listed, err error) {
	err = n.withRuntime(ctx, func(client runtimeapi.RuntimeServiceClient) error {
		containers, err = testnode.List(ctx, client)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("containers of %s: %w", n.name, err)
	}
	return containers, nil
}

// withRuntime calls f with a client of the node's container runtime. The connection
// goes through a program in the node, because the node's socket need not be on this
// machine, or not be ours to open.
func (n *Node) withRuntime(ctx context.Context, f func(runtimeapi.RuntimeServiceClient) error) error {
	connection, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return n.dial(ctx, containerdSocket) }))
	if err != nil {
		return err
	}
	defer connection.Close()
	return f(runtimeapi.NewRuntimeServiceClient(connection))
}

// dial connects to a unix socket of the node. The connection ends with the context.
func (n *Node) dial(ctx context.Context, socket string) (net.Conn, error) {
	cmd := exec.CommandContext(ctx, "docker", "exec", "--interactive", n.name, "dial-socket", socket)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+n.engine.host())
	ours, theirs := net.Pipe()
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = theirs, &stderr
	// Not cmd.Stdin: Wait would wait for more to read when the program has ended.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	go func() {
		_, _ = io.Copy(stdin, theirs)
		_ = stdin.Close()
	}()
	c := &processConn{Conn: ours, kill: cmd.Process.Kill, ended: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		c.failure = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
		close(c.ended)
		_ = theirs.Close()
	}()
	return c, nil
}

// processConn is a connection whose other end is a process.
type processConn struct {
	net.Conn
	kill func() error
	// failure is why there is nothing more to read, once ended is closed.
	failure error
	ended   chan struct{}
}

// Read returns what the process printed when it ended.
func (c *processConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		select {
		case <-c.ended:
			err = c.failure
		default:
		}
	}
	return n, err
}

// Close ends the process, too.
func (c *processConn) Close() error {
	err := c.Conn.Close()
	_ = c.kill() // it may have ended by itself
	return err
}
