package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"kubelet-guard.io/node-e2e/debian"
)

// memoryMiB is the guest's memory: a control plane, a node and their page cache.
const memoryMiB = 4096

// Config says what to run.
type Config struct {
	// OutputDir is the folder with the built programs. In the guest it is /output, with
	// the folders of programs as here, and clusters and e2e of its own.
	OutputDir string
	// ManifestDir is in the guest at /manifests.
	ManifestDir string
	// Command is the program with its arguments. Its working directory is /output, and
	// what it writes into /results is afterwards in Results.
	Command []string
	// Bridge is a network bridge of this machine that the guest's only network device is
	// connected to. Empty leaves the guest without a network.
	Bridge string
	// Log receives progress, and what the making of the root file system prints. The
	// console of the guest is a file in Results.
	Log io.Writer
	// share are files that the guest finds below /results.
	share map[string][]byte
}

// Dir is where the root file systems and the results are.
func (c Config) Dir() string { return filepath.Join(c.OutputDir, "cgroup2") }

// Results is the folder with what the guest left: its console, the logs of its
// clusters, and what the program wrote.
func (c Config) Results() string { return filepath.Join(c.Dir(), "results") }

// Console is the file with what the guest printed.
func (c Config) Console() string { return filepath.Join(c.Results(), "console.log") }

// Run starts the machine, runs the command in it and returns the command's exit code
// when the machine has ended. The machine ends with the context, too.
func Run(ctx context.Context, c Config) (int, error) {
	for _, argument := range c.Command {
		if strings.Contains(argument, "\n") {
			return 0, fmt.Errorf("argument %q: a newline cannot be passed", argument)
		}
	}
	if err := debian.RequirePrograms(map[string]string{"qemu-system-x86_64": "qemu-system-x86"}); err != nil {
		return 0, err
	}
	for _, dir := range []*string{&c.OutputDir, &c.ManifestDir} {
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return 0, err
		}
		*dir = absolute
	}
	disk, err := prepareRoot(ctx, c.Dir(), c.Log)
	if err != nil {
		return 0, fmt.Errorf("root file system of the emulated machine: %w", err)
	}
	if err := os.RemoveAll(c.Results()); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(c.Results(), 0o755); err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(c.Results(), "command"), []byte(strings.Join(c.Command, "\n")+"\n"), 0o644); err != nil {
		return 0, err
	}
	for name, content := range c.share {
		path := filepath.Join(c.Results(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return 0, err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return 0, err
		}
	}
	if c.Bridge != "" {
		remove, err := connect(c.Bridge)
		if err != nil {
			return 0, err
		}
		defer remove()
	}
	fmt.Fprintf(c.Log, "Starting the emulated machine; its console is %s\n", c.Console())

	started := time.Now()
	qemu := exec.CommandContext(ctx, "nice", append([]string{"--adjustment=10", "qemu-system-x86_64"}, arguments(c, disk)...)...)
	output, err := qemu.CombinedOutput()
	if ctx.Err() != nil {
		return 0, fmt.Errorf("interrupted, the emulated machine is off: %w", context.Cause(ctx))
	}
	if err != nil {
		return 0, fmt.Errorf("qemu: %w: %s", err, output)
	}
	fmt.Fprintf(c.Log, "The emulated machine has ended after %s\n", time.Since(started).Round(time.Second))
	code, err := os.ReadFile(filepath.Join(c.Results(), "exit-code"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("the emulated machine ended without a result, see %s", c.Console())
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(code)))
}

// arguments are qemu's.
func arguments(c Config, disk root) []string {
	arguments := []string{
		// One thread, which executes one instruction in one nanosecond of the guest's
		// time: the guest has a slow clock instead of a slow processor. While it waits,
		// time passes as here, since the files come from here.
		"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on", "-rtc", "clock=vm",
		"-cpu", "max", "-smp", "1", "-m", strconv.Itoa(memoryMiB),
		"-nodefaults", "-nographic",
		"-serial", "file:" + c.Console(),
		"-kernel", disk.kernel, "-initrd", disk.initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
		// What the guest writes is gone afterwards: the next run finds the same disk.
		"-drive", "file=" + disk.image + ",format=raw,if=virtio,cache=unsafe", "-snapshot",
		"-device", "virtio-rng-pci",
	}
	if c.Bridge != "" {
		arguments = append(arguments, "-netdev", "tap,id=bridge,script=no,downscript=no,ifname="+tapName(c.Bridge), "-device", "virtio-net-pci,netdev=bridge")
	}
	if c.share == nil {
		// Only the agent has the machine reset.
		arguments = append(arguments, "-no-reboot")
	}
	for _, share := range []struct{ tag, options string }{
		{"programs", "path=" + c.OutputDir + ",readonly=on"},
		{"manifests", "path=" + c.ManifestDir + ",readonly=on"},
		{"results", "path=" + c.Results()},
	} {
		arguments = append(arguments, "-virtfs", "local,security_model=none,mount_tag="+share.tag+","+share.options)
	}
	return arguments
}

// tapName is the guest's port of a bridge. A link's name has 15 characters at most.
func tapName(bridge string) string { return bridge + "-vm" }

// connect adds the guest's port to a bridge, and returns what removes it.
func connect(bridge string) (remove func(), err error) {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil, fmt.Errorf("the bridge %s: %w", bridge, err)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = tapName(bridge)
	tap := &netlink.Tuntap{LinkAttrs: attributes, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("adding the port %s: %w", attributes.Name, err)
	}
	remove = func() { _ = netlink.LinkDel(tap) }
	if err := netlink.LinkSetMaster(tap, master); err != nil {
		remove()
		return nil, fmt.Errorf("connecting the port %s with %s: %w", attributes.Name, bridge, err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		remove()
		return nil, fmt.Errorf("starting the port %s: %w", attributes.Name, err)
	}
	return remove, nil
}
