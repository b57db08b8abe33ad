package unit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/unit/unittest"
)

const rolloutDropIn = "/etc/systemd/system/kubelet.service.d/95-kubelet-guard-rollout.conf"

// The kubelet gets the arguments of its unit, whatever that looks like, or none is
// exchanged and the line is named.
func TestUnits(t *testing.T) {
	for _, u := range unittest.Units(t) {
		t.Run(u.Name, func(t *testing.T) {
			root := host.Root(t.TempDir())
			u.Install(t, string(root))
			files, err := Files(root, "kubelet.service")
			if u.Name == "no-unit" {
				require.ErrorIs(t, err, ErrNoUnit)
				return
			}
			require.NoError(t, err)
			for _, dropIn := range []string{rolloutDropIn, PackageDropIn} {
				verdict := Judge(files, dropIn, root.Read)
				if len(u.Refused) > 0 && u.Installer == nil && u.Script == "" {
					said := strings.Join(verdict.Refusals, "\n")
					for _, want := range u.Refused {
						assert.Contains(t, said, want)
					}
					continue
				}
				require.Empty(t, verdict.Refusals)
				require.True(t, verdict.Understood())
				if u.Script != "" || u.Installer != nil {
					continue // not a matter of the text
				}
				assert.Equal(t, u.Prefix, verdict.Command.Prefix)
				assert.Equal(t, u.Arguments, verdict.Command.Arguments)
				assert.Equal(t, u.Needs, verdict.Command.Needs)

				// With the drop-in in its place systemd runs the same but for the program.
				var data []byte
				program, config := PackageProgram, PackageConfiguration
				if dropIn == PackageDropIn {
					data, err = ForPackage(verdict.Command)
				} else {
					program, config = "/opt/kubelet-guard/x/kubelet", "/etc/kubernetes/kubelet-guard/x.yaml"
					data, err = DropIn(verdict.Command, program, config)
				}
				require.NoError(t, err)
				require.NoError(t, root.Write(dropIn, data, 0o644))
				with, err := Files(root, "kubelet.service")
				require.NoError(t, err)
				require.Contains(t, with, dropIn)
				got, err := ExecStart(with, root.Read)
				require.NoError(t, err)
				assert.Equal(t, Command{File: dropIn, Prefix: u.Prefix, Program: program,
					Arguments: strings.TrimSpace(u.Arguments + " " + GuardFlag + "=" + config), Needs: u.Needs}, got)
				assert.Equal(t, verdict, Judge(with, dropIn, root.Read), "the drop-in itself counts")
				assert.Contains(t, string(data), "\nRequiresMountsFor="+filepath.Dir(program)+" "+filepath.Dir(config)+"\n")
				for _, variable := range u.Needs {
					assert.Contains(t, string(data), `test -n "$$`+variable+`"`)
				}
				require.NoError(t, root.Remove(dropIn))
			}
		})
	}
}

func TestFilesAreThoseOfSystemd(t *testing.T) {
	root := host.Root(t.TempDir())
	write := func(name, text string) {
		require.NoError(t, root.Write(name, []byte(text), 0o644))
	}
	const name = "kubelet.service"
	_, err := Files(root, name)
	require.ErrorIs(t, err, ErrNoUnit)

	write("/usr/lib/systemd/system/kubelet.service", "a")
	write("/etc/systemd/system/kubelet.service", "b")
	write("/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", "c")
	write("/usr/lib/systemd/system/kubelet.service.d/20-masked.conf", "d")
	write("/etc/systemd/system/kubelet.service.d/20-masked.conf", "")
	write("/run/systemd/system/kubelet.service.d/10-kubeadm.conf", "e")
	write("/etc/systemd/system/service.d/05-all.conf", "f")
	write("/etc/systemd/system/service.d/10-kubeadm.conf", "no: that of the unit counts")
	write("/etc/systemd/system/kubelet.service.d/README", "g")
	files, err := Files(root, name)
	require.NoError(t, err)
	assert.Equal(t, []string{
		"/etc/systemd/system/kubelet.service",
		"/etc/systemd/system/service.d/05-all.conf",
		"/run/systemd/system/kubelet.service.d/10-kubeadm.conf",
	}, files)

	// A link to the file, to nothing, and to a unit of another name.
	etc := filepath.Join(string(root), "etc/systemd/system/kubelet.service")
	link := func(target string) {
		require.NoError(t, os.Remove(etc))
		require.NoError(t, os.Symlink(target, etc))
	}
	write("/opt/k/kubelet.service", "h")
	link("/opt/k/kubelet.service")
	files, err = Files(root, name)
	require.NoError(t, err)
	assert.Equal(t, "/etc/systemd/system/kubelet.service", files[0])
	write("/dev/null", "")
	link("/dev/null")
	_, err = Files(root, name)
	assert.ErrorContains(t, err, "masked")
	write("/usr/lib/systemd/system/snap.kubelet.service", "i")
	link("/usr/lib/systemd/system/snap.kubelet.service")
	_, err = Files(root, name)
	assert.ErrorContains(t, err, "is another name of snap.kubelet.service")
}

func TestWhatIsStoppedWithTheKubelet(t *testing.T) {
	other := []string{"kubelet", "fuse-helper"}
	for _, c := range []struct {
		mode               string
		stopped, processes []string
		want               string
	}{
		{"control-group", []string{"node-exporter.service", "multi-user.target"}, other, ""},
		{"control-group", nil, append(other, "containerd-shim"), "containerd-shim run in the control group of kubelet.service, and its KillMode=control-group"},
		{"mixed", nil, []string{"conmon"}, "KillMode=mixed"},
		{"process", nil, []string{"containerd-shim"}, ""},
		{"process", []string{"containerd.service"}, nil, "systemd stops containerd.service whenever kubelet.service stops"},
		{"process", []string{"cri-containerd-0a.scope", "kubepods.slice"}, nil, "cri-containerd-0a.scope, kubepods.slice"},
	} {
		said := strings.Join(Verdict{KillMode: c.mode}.Alive(c.stopped, c.processes), "\n")
		if c.want == "" {
			assert.Empty(t, said)
		} else {
			assert.Contains(t, said, c.want)
		}
	}
}

func TestDifference(t *testing.T) {
	of := func(arguments string) []byte {
		data, err := ForPackage(Command{File: "/f", Program: "/usr/bin/kubelet", Arguments: arguments})
		require.NoError(t, err)
		return data
	}
	assert.Empty(t, Difference(of("$A --b"), of("$A --b")))
	assert.Equal(t, "the unit has --root-dir=/data besides", Difference(of("$A"), of("$A --root-dir=/data")))
	assert.Equal(t, "the unit has no --v=2 any more", Difference(of("$A --v=2"), of("$A")))
	assert.Equal(t, "the unit has $B instead of $A", Difference(of("$A --v=2"), of("$B --v=2")))
	assert.Equal(t, "the same arguments, in another order or number", Difference(of("$A $B"), of("$B $A")))
}
