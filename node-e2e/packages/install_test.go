package packages

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/hostnode"
)

var outputFlag = flag.String("throwaway-machine", "", "run on this machine, which is spoilt by it: the folder of the built programs and packages (_output)")

const (
	upstream      = build.KubeVersion
	guardedBinary = "/usr/bin/kubelet-guarded"
	configFile    = "/etc/kubernetes/kubelet-guard.yaml"
	dropIn        = "/etc/systemd/system/kubelet.service.d/90-kubelet-guard.conf"
	unitCommand   = "/usr/sbin/kubelet-guard-unit"
)

// TestInstall takes a node with running pods from the stock kubelet to the guarded
// one and back, once with each kind of package. No container may restart on the way.
func TestInstall(t *testing.T) {
	if *outputFlag == "" {
		t.Skip("installs packages and units on this machine: run it by make test-packages, or with -throwaway-machine=_output where that does no harm")
	}
	output, err := filepath.Abs(*outputFlag)
	require.NoError(t, err)
	m := newMachine(t, output)
	m.AwaitKubelet(upstream)
	for _, name := range []string{"protected", "unprotected"} {
		m.RunPod(name, name == "protected")
	}
	before := m.Tasks()
	if strings.Count(before, "\n") != 3 { // a container and a sandbox each
		t.Fatalf("the two pods have the processes:\n%s", before)
	}
	t.Logf("processes of the pods at the start:\n%s", before)

	for _, p := range []struct {
		format, pattern         string
		install, remove, purged []string
		// relations prints which kubelets the package does not go with.
		relations func(file string) []string
	}{
		{"deb", "*_" + debArch() + ".deb", []string{"dpkg", "--install"}, []string{"dpkg", "--remove", "kubelet-guard"}, []string{"dpkg", "--purge", "kubelet-guard"},
			func(file string) []string { return []string{"dpkg-deb", "--field", file, "Breaks"} }},
		// The other's dependencies are not in rpm's own list on a Debian machine.
		{"rpm", "*." + rpmArch() + ".rpm", []string{"rpm", "--install", "--nodeps"}, []string{"rpm", "--erase", "kubelet-guard"}, nil,
			func(file string) []string { return []string{"rpm", "--query", "--package", "--conflicts", file} }},
	} {
		file := m.packageFile(output, p.pattern)
		install := append(p.install, file)
		t.Run(p.format, func(t *testing.T) {
			m := machine{m.In(t), t}
			stock := m.KubeletPID()
			relations := m.Run(p.relations(file)...)
			for _, want := range []string{"1.36", "1.37~"} {
				if !strings.Contains(relations, want) {
					t.Errorf("the package has the relations %q, none to kubelet %s", relations, want)
				}
			}

			t.Log("a unit that stops containers is refused, and nothing is changed")
			const stops = "ExecStop=/usr/bin/crictl stop --timeout=60 all"
			m.Write(stopDropIn, "[Service]\n"+stops+"\n")
			refusal := m.Output(install...)
			t.Log(refusal)
			for _, want := range []string{stopDropIn + ": " + stops, "REFUSED"} {
				if !strings.Contains(refusal, want) {
					t.Errorf("the installation does not say %q", want)
				}
			}
			m.ExpectNoFile(dropIn)
			m.Run(p.remove...)
			m.Run("rm", stopDropIn)

			t.Log(m.Run(install...))
			if got := m.KubeletPID(); got != stock {
				t.Fatalf("the installation restarted the kubelet: process %d, was %d", got, stock)
			}

			m.Run("systemctl", "restart", "kubelet")
			m.awaitGuarded("Audit")
			m.ExpectTasks(before)

			m.Write(configFile, strings.Replace(m.Read(configFile), "mode: Audit", "mode: Enforce", 1))
			m.Run("systemctl", "restart", "kubelet")
			m.awaitGuarded("Enforce")
			m.ExpectTasks(before)

			t.Log("a kubelet without its guard configuration does not start, and stops nothing")
			m.Run("mv", configFile, configFile+".away")
			m.restartAndExpect(configFile + ": no such file")
			m.ExpectTasks(before)
			m.Run("mv", configFile+".away", configFile)
			m.awaitGuarded("Enforce")

			t.Log("a command that was changed later is named in the journal; the kubelet starts with the previous one")
			own := m.Read(localDropIn)
			m.Write(localDropIn, strings.TrimSuffix(own, "\n")+" --v=3\n")
			m.Run("systemctl", "daemon-reload")
			m.restartAndExpect("the unit has --v=3 besides")
			m.awaitGuarded("Enforce")
			m.ExpectTasks(before)
			m.Run(unitCommand, "apply")
			if text := m.Read(dropIn); !strings.Contains(text, " --v=3 --guard-config=") {
				t.Fatalf("the drop-in has not got the new command:\n%s", text)
			}
			m.Write(localDropIn, own)
			m.Run(unitCommand, "apply")
			m.Run("systemctl", "daemon-reload")

			t.Log("a unit that does not set the variables any more does not start, and stops nothing")
			m.Write("/etc/systemd/system/kubelet.service.d/20-other.conf", "[Service]\nUnsetEnvironment=KUBELET_CONFIG_ARGS\n")
			m.Run("systemctl", "daemon-reload")
			m.restartAndExpect("does not set all of KUBELET_CONFIG_ARGS, KUBELET_KUBECONFIG_ARGS any more")
			m.ExpectTasks(before)
			m.Run("rm", "/etc/systemd/system/kubelet.service.d/20-other.conf")
			m.Run("systemctl", "daemon-reload")
			m.awaitGuarded("Enforce")

			if p.format == "deb" {
				m.Run(install...)
				if config := m.Read(configFile); !strings.Contains(config, "\nmode: Enforce\n") {
					t.Fatalf("installing again changed the configuration:\n%s", config)
				}
			}
			guarded := m.KubeletPID()
			removal := m.Run(p.remove...)
			t.Log(removal)
			for _, want := range []string{"has 1 protected pods (" + rootDir + "/guard)", "runs on until kubelet.service is restarted"} {
				if !strings.Contains(removal, want) {
					t.Errorf("the removal does not say %q", want)
				}
			}
			if got := m.KubeletPID(); got != guarded {
				t.Fatalf("the removal restarted the kubelet: process %d, was %d", got, guarded)
			}
			m.ExpectNoFile(guardedBinary, unitCommand, dropIn)
			m.Run("systemctl", "restart", "kubelet")
			m.AwaitKubelet(upstream)
			m.ExpectTasks(before)
			if p.purged != nil {
				m.Run(p.purged...)
				m.ExpectNoFile(configFile)
			}
			m.Run("systemctl", "restart", "kubelet")
			m.AwaitKubelet(upstream)
			m.ExpectTasks(before)
		})
	}
}

// awaitGuarded waits until the node runs the package's kubelet in that mode.
func (m *machine) awaitGuarded(mode string) {
	m.t.Helper()
	version := build.GuardedVersion(upstream)
	m.AwaitKubelet(version)
	m.Await("the metrics of the guard in mode "+mode, func() error {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.KubeletPID()))
		if err != nil {
			return err
		}
		if program != guardedBinary {
			return fmt.Errorf("kubelet.service runs %s", program)
		}
		metrics, err := kubeletMetrics()
		if err != nil {
			return err
		}
		want := fmt.Sprintf("kubelet_guard_info{mode=%q,version=%q} 1\n", mode, version)
		if strings.Contains(metrics, want) {
			return nil
		}
		return fmt.Errorf("no line %s", want)
	})
}

func kubeletMetrics() (string, error) {
	client := http.Client{Transport: insecureTransport(), Timeout: hostnode.NodeChange}
	response, err := client.Get("https://127.0.0.1:10250/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// restartAndExpect restarts the kubelet and waits until the journal of its unit has the
// text.
func (m *machine) restartAndExpect(text string) {
	m.t.Helper()
	// What earlier starts have said does not count.
	start := m.Run("journalctl", "--unit=kubelet", "--lines=0", "--show-cursor", "--quiet")
	_, cursor, _ := strings.Cut(strings.TrimSpace(start), "-- cursor: ")
	m.Run("systemctl", "restart", "--no-block", "kubelet")
	m.Await("the journal of the kubelet to say "+text, func() error {
		journal := m.Run("journalctl", "--unit=kubelet", "--no-pager", "--output=cat", "--after-cursor="+cursor)
		if !strings.Contains(journal, text) {
			return fmt.Errorf("the journal since the restart is:\n%s", journal)
		}
		return nil
	})
}

func (m *machine) packageFile(output, pattern string) string {
	m.t.Helper()
	files, err := filepath.Glob(filepath.Join(output, "packages", pattern))
	if err != nil || len(files) != 1 {
		m.t.Fatalf("%s in %s/packages: %d files, %v; run make packages", pattern, output, len(files), err)
	}
	return files[0]
}
