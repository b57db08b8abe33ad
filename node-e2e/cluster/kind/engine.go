package kind

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/images"
)

const (
	// engineStart is how long Docker Engine may take until it responds; it is up in
	// two seconds.
	engineStart = time.Minute
	// engineStop is how long it may take to stop its containers and to end.
	engineStop = time.Minute
)

// engine is a Docker Engine.
type engine struct {
	// Host is its address, as in DOCKER_HOST; "" is the address that the docker
	// command takes by itself.
	Host string `json:"host,omitempty"`
	// Own is set for an engine that this package started. Its files are in Dir.
	Own bool `json:"own,omitempty"`
	// Dir holds the data of an own engine, RunDir its sockets.
	Dir    string `json:"dir,omitempty"`
	RunDir string `json:"runDir,omitempty"`
}

// userHost is DOCKER_HOST as the user has set it: kind takes it from this process'
// environment, so it is changed there.
var userHost = os.Getenv("DOCKER_HOST")

// host is the value of DOCKER_HOST; "" is as good as none.
func (e engine) host() string { return cmp.Or(e.Host, userHost) }

// docker runs the docker command and returns what it printed. The error carries what
// it printed to stderr, and wraps an *exec.ExitError.
func (e engine) docker(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=0", "DOCKER_HOST="+e.host())
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return stdout.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// responds reports whether the engine is there.
func (e engine) responds(ctx context.Context) error {
	_, err := e.docker(ctx, nil, "version", "--format={{.Server.Version}}")
	return err
}

// hasImage reports whether the engine has the image.
func (e engine) hasImage(ctx context.Context, name string) bool {
	_, err := e.docker(ctx, nil, "image", "inspect", "--format={{.Id}}", name)
	return err == nil
}

// hasCluster reports whether the engine has nodes of the kind cluster of that name, or of
// any if the name is "".
func (e engine) hasCluster(ctx context.Context, name string) (bool, error) {
	filter := "label=io.x-k8s.kind.cluster"
	if name != "" {
		filter += "=" + name
	}
	ids, err := e.docker(ctx, nil, "ps", "--all", "--quiet", "--filter="+filter)
	return strings.TrimSpace(ids) != "", err
}

// runDir has a folder for each own engine, and what holds until the machine's next boot.
const runDir = "/run"

// ownEngine is the engine that this package starts for an output folder.
func ownEngine(output string) engine {
	// The path of a socket must be short.
	run := fmt.Sprintf(runDir+"/kubelet-guard-kind-%x", sha256.Sum256([]byte(output)))[:34]
	return engine{
		Host:   "unix://" + filepath.Join(run, "docker.sock"),
		Own:    true,
		Dir:    filepath.Join(output, "kind", "engine"),
		RunDir: run,
	}
}

// ownEngines are the engines on this machine that this package started, of any output
// folder.
func ownEngines(runDir string) []engine {
	sockets, _ := filepath.Glob(filepath.Join(runDir, "kubelet-guard-kind-*", "docker.sock"))
	var engines []engine
	for _, socket := range sockets {
		engines = append(engines, engine{Host: "unix://" + socket, Own: true, RunDir: filepath.Dir(socket)})
	}
	return engines
}

// findEngine returns an engine that can run nodes: the one that the docker command
// finds, or one of our own, which it starts if it is not running.
func findEngine(ctx context.Context, output string, log io.Writer) (engine, error) {
	// A later process may have another DOCKER_HOST. It may also be what `kind up` printed.
	own, found := ownEngine(output), engine{Host: userHost}
	reason := found.responds(ctx)
	if reason == nil && found.Host != own.Host {
		if reason = found.runsPrivileged(ctx, output); reason == nil {
			return found, nil
		}
	}
	if ctx.Err() != nil {
		return engine{}, context.Cause(ctx)
	}
	if own.responds(ctx) == nil {
		return own, nil
	}
	fmt.Fprintf(log, "No usable Docker Engine (%s)\nStarting one of our own; its data and log are in %s\n", firstLine(reason), own.Dir)
	if err := own.start(ctx, output, log); err != nil {
		return engine{}, fmt.Errorf("starting Docker Engine: %w", err)
	}
	if err := own.runsPrivileged(ctx, output); err != nil {
		return engine{}, errors.Join(err, own.stop(context.WithoutCancel(ctx)))
	}
	return own, nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// runsPrivileged tries whether the engine can run a privileged container, as every
// node is one.
func (e engine) runsPrivileged(ctx context.Context, output string) error {
	const probe = "localhost/guard/probe:v1"
	if !e.hasImage(ctx, probe) {
		var image bytes.Buffer
		if err := images.Write(&image, images.Program(probe, filepath.Join(output, "node", "bin", "pause"))); err != nil {
			return fmt.Errorf("%w (make node-binaries builds it)", err)
		}
		if _, err := e.docker(ctx, &image, "load"); err != nil {
			return err
		}
	}
	id, err := e.docker(ctx, nil, "create", "--privileged", "--network=none", probe, "/pause")
	if err != nil {
		return err
	}
	id = strings.TrimSpace(id)
	_, err = e.docker(ctx, nil, "start", id)
	_, removed := e.docker(context.WithoutCancel(ctx), nil, "rm", "--force", "--volumes", id)
	if err != nil {
		return fmt.Errorf("a privileged container does not start: %w", err)
	}
	return removed
}

// start starts the engine. It stays when this process ends.
func (e engine) start(ctx context.Context, output string, log io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root; start Docker yourself, or set DOCKER_HOST to an engine that may run privileged containers")
	}
	if err := installPackages(ctx, log, map[string]string{"dockerd": "docker.io", "docker": "docker.io", "runc": "runc", "iptables": "iptables"}); err != nil {
		return err
	}
	wrapper := filepath.Join(output, "kind", "bin", "runc-bounded")
	if _, err := os.Stat(wrapper); err != nil {
		return fmt.Errorf("%w (make kind-binaries builds it)", err)
	}
	for _, dir := range []string{e.Dir, e.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	// Nodes are in a network that kind makes. But an engine that is to have no bridge
	// removes the usual one, which another engine may use.
	bridge := "none"
	if _, err := netlink.LinkByName("docker0"); err == nil {
		bridge = e.bridge()
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("bridge %s: %w", bridge, err)
		}
	}
	config, err := json.MarshalIndent(map[string]any{
		"hosts":           []string{e.Host},
		"data-root":       filepath.Join(e.Dir, "data"),
		"exec-root":       filepath.Join(e.RunDir, "exec"),
		"pidfile":         e.pidFile(),
		"bridge":          bridge,
		"default-runtime": "bounded",
		"runtimes":        map[string]any{"bounded": map[string]any{"path": wrapper}},
		"log-level":       "warn",
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(e.configFile(), append(config, '\n'), 0o644); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(e.Dir, "dockerd.log"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	daemon := exec.Command("dockerd", "--config-file="+e.configFile())
	daemon.Stdout, daemon.Stderr = logFile, logFile
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := daemon.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	err = poll(ctx, engineStart, 200*time.Millisecond, func(ctx context.Context) error {
		select {
		case err := <-ended:
			return final{fmt.Errorf("dockerd ended (%w), see %s", err, logFile.Name())}
		default:
			return e.responds(ctx)
		}
	})
	if err != nil {
		return errors.Join(err, e.stop(context.WithoutCancel(ctx)))
	}
	return nil
}

func (e engine) configFile() string { return filepath.Join(e.Dir, "daemon.json") }

// bridge is the name of the engine's default network, where it needs one.
func (e engine) bridge() string { return "guard-" + e.RunDir[len(e.RunDir)-8:] }

func (e engine) pidFile() string { return filepath.Join(e.RunDir, "dockerd.pid") }

// stop ends an own engine and removes what it left on the machine except its data:
// images are worth keeping. An engine that does not run is no error.
func (e engine) stop(ctx context.Context) error {
	if !e.Own {
		return nil
	}
	if e.responds(ctx) == nil {
		// The engine does not remove the bridge when it ends.
		if _, err := e.docker(ctx, nil, "network", "prune", "--force"); err != nil {
			return err
		}
	}
	process, err := e.process()
	if err != nil {
		return err
	}
	if process != (testnode.Process{}) {
		if err := process.Signal(unix.SIGTERM); err != nil {
			return fmt.Errorf("ending dockerd: %w", err)
		}
		err := poll(ctx, engineStop, 100*time.Millisecond, func(context.Context) error {
			if alive, err := process.Alive(); err != nil || alive {
				return fmt.Errorf("dockerd (%s) is still there: %w", process, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, dir := range []string{e.RunDir, e.Dir} {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return err
		}
		// The innermost first.
		for i := len(mounts) - 1; i >= 0; i-- {
			if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("unmounting %s: %w", mounts[i].Mountpoint, err)
			}
		}
	}
	if bridge, err := netlink.LinkByName(e.bridge()); err == nil {
		if err := netlink.LinkDel(bridge); err != nil {
			return fmt.Errorf("bridge %s: %w", e.bridge(), err)
		}
		if err := removeRules(ctx, e.bridge()); err != nil {
			return err
		}
	}
	return os.RemoveAll(e.RunDir)
}

// removeRules removes the packet filter's rules for a bridge, which the engine leaves.
func removeRules(ctx context.Context, bridge string) error {
	for _, table := range []string{"filter", "nat"} {
		rules, err := exec.CommandContext(ctx, "iptables", "--wait", "--table="+table, "--list-rules").Output()
		if err != nil {
			return fmt.Errorf("iptables --table=%s --list-rules: %w", table, err)
		}
		for rule := range strings.Lines(string(rules)) {
			words := strings.Fields(rule)
			if words[0] != "-A" || !slices.Contains(words, bridge) {
				continue
			}
			words[0] = "--delete"
			if output, err := exec.CommandContext(ctx, "iptables", append([]string{"--wait", "--table=" + table}, words...)...).CombinedOutput(); err != nil {
				return fmt.Errorf("iptables %s: %w: %s", strings.Join(words, " "), err, output)
			}
		}
	}
	return nil
}

// process is the process of an own engine, empty if there is none.
func (e engine) process() (testnode.Process, error) {
	content, err := os.ReadFile(e.pidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return testnode.Process{}, nil
	}
	if err != nil {
		return testnode.Process{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return testnode.Process{}, fmt.Errorf("%s: %w", e.pidFile(), err)
	}
	process, err := testnode.FindProcess(pid)
	if err != nil {
		return testnode.Process{}, nil
	}
	// After a crash, the number may be another program's by now.
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(command), e.configFile()) {
		return testnode.Process{}, nil
	}
	return process, nil
}

// installPackages installs the Debian packages of programs that are not there.
func installPackages(ctx context.Context, log io.Writer, packageOf map[string]string) error {
	missing := map[string]bool{}
	for program, name := range packageOf {
		if _, err := exec.LookPath(program); err != nil {
			missing[name] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	args := []string{"install", "--yes", "--quiet", "--no-install-recommends"}
	for name := range missing {
		args = append(args, name)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("not installed, and no apt-get that could install it: %s", strings.Join(args[4:], " "))
	}
	fmt.Fprintf(log, "Installing %s\n", strings.Join(args[4:], " "))
	for _, args := range [][]string{{"update", "--quiet"}, args} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, output)
		}
	}
	return nil
}

// inotifyInstances is the kernel's limit per user. Every node's systemd, containerd
// and kubelet take some, and the usual 128 are gone after two nodes.
const (
	inotifyInstances = "/proc/sys/fs/inotify/max_user_instances"
	inotifyWanted    = 1024
)

// inotifyBefore is the file that remembers what the limit was, for the last cluster of
// the machine.
const inotifyBefore = runDir + "/kubelet-guard-kind.inotify"

// raiseInotify raises the limit if it is lower than wanted.
func raiseInotify(log io.Writer) error {
	content, err := os.ReadFile(inotifyInstances)
	if err != nil {
		return nil // not this kernel's to limit, or not here
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return fmt.Errorf("%s: %w", inotifyInstances, err)
	}
	// What kind's documentation demands.
	if limit >= 512 {
		return nil
	}
	if err := setInotify(inotifyWanted); err != nil {
		return fmt.Errorf("fs.inotify.max_user_instances is %d, several nodes need 512: %w", limit, err)
	}
	fmt.Fprintf(log, "fs.inotify.max_user_instances: %d instead of %d while clusters are up\n", inotifyWanted, limit)
	return os.WriteFile(inotifyBefore, content, 0o644)
}

// restoreInotify sets the limit to what it was.
func restoreInotify() error {
	content, err := os.ReadFile(inotifyBefore)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	before, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return fmt.Errorf("%s: %w", inotifyBefore, err)
	}
	return errors.Join(setInotify(before), os.Remove(inotifyBefore))
}

func setInotify(limit int) error {
	return os.WriteFile(inotifyInstances, []byte(strconv.Itoa(limit)), 0o644)
}

// final is an error that ends poll at once.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// poll calls f until it returns nil, a final error, or the time is over.
func poll(ctx context.Context, timeout, interval time.Duration, f func(context.Context) error) error {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		var end final
		if errors.As(err, &end) {
			return end.error
		}
		// An error at the end of the time explains less than the one before.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", time.Since(started).Round(time.Second), last)
		case <-time.After(interval):
		}
	}
}
