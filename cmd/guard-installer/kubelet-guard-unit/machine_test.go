package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/cmd/guard-installer/internal/unit/unittest"
)

// node is a machine whose files are in a folder, and what it says.
type node struct {
	machine
	t   *testing.T
	now systemd.Unit
	err error
	// said is what was printed, on both streams.
	said bytes.Buffer
}

func newNode(t *testing.T, name string) *node {
	t.Helper()
	n := &node{t: t}
	n.machine = machine{root: host.Root(t.TempDir()), state: func() (systemd.Unit, error) { return n.now, n.err }, out: &n.said, errOut: &n.said}
	for _, u := range unittest.Units(t) {
		if u.Name == name {
			n.install(u)
			return n
		}
	}
	t.Fatalf("there is no unit %s", name)
	return nil
}

// install installs a unit with its kubelet.
func (n *node) install(u unittest.Unit) {
	n.t.Helper()
	u.Install(n.t, string(n.root))
	var program bytes.Buffer
	require.NoError(n.t, binary.Write(&program, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Ehsize: 64,
	}))
	for _, name := range []string{"/usr/bin/kubelet", "/opt/bin/kubelet", "/usr/local/bin/kubelet-wrapper"} {
		data := program.Bytes()
		if name == u.Script {
			data = []byte("#!/bin/sh\n")
		}
		require.NoError(n.t, n.root.Write(name, data, 0o755))
	}
}

func (n *node) write(name, text string) {
	n.t.Helper()
	require.NoError(n.t, n.root.Write(name, []byte(text), 0o644))
}

// run has the kubelet run with the arguments.
func (n *node) run(arguments ...string) {
	n.t.Helper()
	n.now.MainPID = 1000
	n.write("/proc/1000/exe", "kubelet")
	n.write("/proc/1000/cmdline", strings.Join(append([]string{"/usr/bin/kubelet"}, arguments...), "\x00")+"\x00")
}

func (n *node) dropInText() string {
	n.t.Helper()
	data, err := n.root.Read(unit.PackageDropIn)
	require.NoError(n.t, err)
	return string(data)
}

func TestUnits(t *testing.T) {
	for _, u := range unittest.Units(t) {
		t.Run(u.Name, func(t *testing.T) {
			n := newNode(t, u.Name)
			err := n.apply()
			if len(u.Refused) > 0 {
				require.Error(t, err)
				for _, want := range append(u.Refused, "REFUSED: ") {
					assert.ErrorContains(t, err, want)
				}
				assert.False(t, n.root.Exists(unit.PackageDropIn), "a node that is refused must stay as it is")
				return
			}
			require.NoError(t, err)
			assert.Contains(t, n.dropInText(), "\nExecStart="+u.Prefix+"/usr/bin/kubelet-guarded "+u.Arguments+" --guard-config=/etc/kubernetes/kubelet-guard.yaml\n")
			require.NoError(t, n.check())
			before := n.said.String()
			require.NoError(t, n.apply())
			assert.Equal(t, before, n.said.String(), "an upgrade without a change has nothing to say")
		})
	}
}

func TestApplyLeavesWhatIsThereWhenItRefuses(t *testing.T) {
	n := newNode(t, "kubeadm")
	require.NoError(t, n.apply())
	text := n.dropInText()
	n.write("/etc/systemd/system/kubelet.service.d/50-stop.conf", "[Service]\nExecStop=/usr/bin/crictl stop --all\n")
	require.ErrorContains(t, n.apply(), "50-stop.conf: ExecStop=/usr/bin/crictl stop --all: it stops containers")
	assert.Equal(t, text, n.dropInText())
	assert.ErrorContains(t, n.check(), "50-stop.conf: ExecStop=/usr/bin/crictl stop --all")
}

func TestApplyInspectsWhatRuns(t *testing.T) {
	n := newNode(t, "kubeadm")
	n.now.StoppedWith = []string{"containerd.service"}
	assert.ErrorContains(t, n.apply(), "systemd stops containerd.service whenever kubelet.service stops")

	n = newNode(t, "kubeadm")
	n.now.ControlGroup = "/system.slice/kubelet.service"
	n.write("/proc/7/cgroup", "0::/system.slice/kubelet.service\n")
	n.write("/proc/7/comm", "containerd-shim\n")
	assert.ErrorContains(t, n.apply(), "containerd-shim run in the control group of kubelet.service")

	n = newNode(t, "kubeadm")
	n.err = errors.New("no answer")
	assert.ErrorContains(t, n.apply(), "it is not known what systemd would stop with kubelet.service: no answer")
}

func TestANodeOfARollOutIsRefused(t *testing.T) {
	n := newNode(t, "kubeadm")
	text, err := unit.DropIn(unit.Command{File: "/f", Program: "/usr/bin/kubelet"}, "/opt/kubelet-guard/x/kubelet", "/etc/x.yaml")
	require.NoError(t, err)
	n.write("/etc/systemd/system/kubelet.service.d/95-kubelet-guard-rollout.conf", string(text))
	require.ErrorContains(t, n.apply(), "95-kubelet-guard-rollout.conf: this node belongs to a roll-out")
	assert.False(t, n.root.Exists(unit.PackageDropIn))
}

func TestCheckNamesWhatHasChanged(t *testing.T) {
	n := newNode(t, "kubeadm")
	require.NoError(t, n.apply())
	require.NoError(t, n.check())
	n.write("/etc/systemd/system/kubelet.service.d/20-local.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS --root-dir=/data\n")
	err := n.check()
	require.ErrorContains(t, err, "the unit has --root-dir=/data besides")
	require.ErrorContains(t, err, "/usr/sbin/kubelet-guard-unit apply")
	require.NoError(t, n.apply())
	require.NoError(t, n.check())
	assert.Contains(t, n.dropInText(), " --root-dir=/data --guard-config=")
}

func TestRemove(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*node)
		want    string
	}{
		"the default root directory": {func(n *node) { n.run(); n.write("/var/lib/kubelet/guard/pods/a.pod", "") }, "(/var/lib/kubelet/guard)"},
		"--root-dir": {func(n *node) {
			n.run("--root-dir=/var/lib/other", "--root-dir", "/data/kubelet")
			n.write("/data/kubelet/guard/pods/a.pod", "")
			n.write("/data/kubelet/guard/pods/a.tmp", "")
		}, "(/data/kubelet/guard)"},
		"stateDir": {func(n *node) {
			n.run("--root-dir=/data/kubelet", "--guard-config=/etc/guard.yaml")
			n.write("/etc/guard.yaml", "mode: Enforce\nstateDir: /srv/guard # ours\n")
			n.write("/srv/guard/pods/a.pod", "")
		}, "(/srv/guard)"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "kubeadm")
			require.NoError(t, n.apply())
			c.prepare(n)
			require.NoError(t, n.remove())
			assert.Contains(t, n.said.String(), "WARNING: this node has 1 protected pods "+c.want)
			assert.False(t, n.root.Exists(unit.PackageDropIn))
			require.NoError(t, n.remove(), "a second time")
		})
	}
	n := newNode(t, "kubeadm")
	require.NoError(t, n.apply())
	require.NoError(t, n.remove())
	assert.Contains(t, n.said.String(), "its --root-dir is not known")

	n = newNode(t, "kubeadm")
	n.run()
	n.write(unit.PackageDropIn, "[Service]\n")
	require.NoError(t, n.remove())
	assert.Contains(t, n.said.String(), "was not written by this package and is left")
	assert.True(t, n.root.Exists(unit.PackageDropIn))
}

// The scripts of the package, with programs of the test in place of those of a node.
func TestScripts(t *testing.T) {
	for _, c := range []struct {
		script, argument string
		// exits of systemctl and of kubelet-guard-unit
		reload, unit string
		code         int
		want         string
	}{
		{"postinstall", "configure", "0", "0", 0, "takes effect at the next start"},
		{"postinstall", "1", "0", "0", 0, "takes effect at the next start"},
		{"postinstall", "configure", "1", "0", 0, "WARNING: systemd refused to read its units again"},
		{"postinstall", "configure", "0", "1", 1, "unit apply"},
		{"postinstall", "2", "0", "1", 1, "unit apply"},
		{"postinstall", "abort-remove", "1", "1", 0, "unit apply"},
		{"preremove", "remove", "0", "0", 0, "unit remove"},
		{"preremove", "0", "0", "1", 0, "by hand"},
		{"preremove", "upgrade", "0", "1", 0, ""},
		{"preremove", "1", "0", "1", 0, ""},
		{"postremove", "remove", "1", "0", 0, "is removed"},
		{"postremove", "0", "1", "0", 0, "WARNING: systemd refused to read its units again"},
		{"postremove", "upgrade", "1", "0", 0, ""},
	} {
		t.Run(c.script+" "+c.argument+" "+c.reload+c.unit, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("../../../build/packages/scripts", c.script+".sh"))
			require.NoError(t, err)
			dir := t.TempDir()
			program := func(name, code string) {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+strings.TrimPrefix(name, "kubelet-guard-")+" \"$@\"\nexit "+code+"\n"), 0o755))
			}
			program("kubelet-guard-unit", c.unit)
			program("systemctl", c.reload)
			script := strings.NewReplacer("/usr/sbin/", dir+"/", "-d /run/systemd/system", "-d "+dir).Replace(string(data))
			command := exec.Command("/bin/sh", "-c", script, c.script, c.argument)
			command.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
			out, err := command.CombinedOutput()
			code := 0
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code, err = exit.ExitCode(), nil
			}
			require.NoError(t, err)
			assert.Equal(t, c.code, code, "%s", out)
			if c.want == "" {
				assert.Empty(t, string(out))
			} else {
				assert.Contains(t, string(out), c.want)
			}
		})
	}
}
