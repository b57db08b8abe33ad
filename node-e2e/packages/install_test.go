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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/embedded"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var outputFlag = flag.String("throwaway-machine", "", "run on this machine, which is spoilt by it: the folder of the built programs and packages (_output)")

const (
	upstream      = "v1.36.3"
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
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, output)
	m.awaitKubelet(upstream)
	for _, name := range []string{"protected", "unprotected"} {
		m.runPod(name, name == "protected")
	}
	before := m.tasks()
	t.Logf("containers at the start:\n%s", before)

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
			m := *m
			m.t = t
			stock := m.kubeletPID()
			relations := m.run(p.relations(file)...)
			for _, want := range []string{"1.36", "1.37~"} {
				if !strings.Contains(relations, want) {
					t.Errorf("the package has the relations %q, none to kubelet %s", relations, want)
				}
			}

			t.Log("a unit that stops containers is refused, and nothing is changed")
			const stops = "ExecStop=/usr/bin/crictl stop --timeout=60 all"
			m.write(stopDropIn, "[Service]\n"+stops+"\n")
			refusal := m.output(install...)
			t.Log(refusal)
			for _, want := range []string{stopDropIn + ": " + stops, "REFUSED"} {
				if !strings.Contains(refusal, want) {
					t.Errorf("the installation does not say %q", want)
				}
			}
			m.expectNoFile(dropIn)
			m.run(p.remove...)
			m.run("rm", stopDropIn)

			t.Log(m.run(install...))
			if got := m.kubeletPID(); got != stock {
				t.Fatalf("the installation restarted the kubelet: process %d, was %d", got, stock)
			}

			m.run("systemctl", "restart", "kubelet")
			m.awaitGuarded("Audit")
			m.expectTasks(before)

			m.write(configFile, strings.Replace(m.read(configFile), "mode: Audit", "mode: Enforce", 1))
			m.run("systemctl", "restart", "kubelet")
			m.awaitGuarded("Enforce")
			m.expectTasks(before)

			t.Log("a kubelet without its guard configuration does not start, and stops nothing")
			m.run("mv", configFile, configFile+".away")
			m.restartAndExpect(configFile + ": no such file")
			m.expectTasks(before)
			m.run("mv", configFile+".away", configFile)
			m.awaitGuarded("Enforce")

			t.Log("a command that was changed later is named in the journal; the kubelet starts with the one of before")
			own := m.read(localDropIn)
			m.write(localDropIn, strings.TrimSuffix(own, "\n")+" --v=3\n")
			m.run("systemctl", "daemon-reload")
			m.restartAndExpect("the unit has --v=3 besides")
			m.awaitGuarded("Enforce")
			m.expectTasks(before)
			m.run(unitCommand, "apply")
			if text := m.read(dropIn); !strings.Contains(text, " --v=3 --guard-config=") {
				t.Fatalf("the drop-in has not got the new command:\n%s", text)
			}
			m.write(localDropIn, own)
			m.run(unitCommand, "apply")
			m.run("systemctl", "daemon-reload")

			t.Log("a unit that does not set the variables any more does not start, and stops nothing")
			m.write("/etc/systemd/system/kubelet.service.d/20-other.conf", "[Service]\nUnsetEnvironment=KUBELET_CONFIG_ARGS\n")
			m.run("systemctl", "daemon-reload")
			m.restartAndExpect("does not set all of KUBELET_CONFIG_ARGS, KUBELET_KUBECONFIG_ARGS any more")
			m.expectTasks(before)
			m.run("rm", "/etc/systemd/system/kubelet.service.d/20-other.conf")
			m.run("systemctl", "daemon-reload")
			m.awaitGuarded("Enforce")

			if p.format == "deb" {
				m.run(install...)
				if config := m.read(configFile); !strings.Contains(config, "\nmode: Enforce\n") {
					t.Fatalf("installing again changed the configuration:\n%s", config)
				}
			}
			guarded := m.kubeletPID()
			removal := m.run(p.remove...)
			t.Log(removal)
			for _, want := range []string{"has 1 protected pods (" + rootDir + "/guard)", "runs on until kubelet.service is restarted"} {
				if !strings.Contains(removal, want) {
					t.Errorf("the removal does not say %q", want)
				}
			}
			if got := m.kubeletPID(); got != guarded {
				t.Fatalf("the removal restarted the kubelet: process %d, was %d", got, guarded)
			}
			m.expectNoFile(guardedBinary, unitCommand, dropIn)
			m.run("systemctl", "restart", "kubelet")
			m.awaitKubelet(upstream)
			m.expectTasks(before)
			if p.purged != nil {
				m.run(p.purged...)
				m.expectNoFile(configFile)
			}
			m.run("systemctl", "restart", "kubelet")
			m.awaitKubelet(upstream)
			m.expectTasks(before)
		})
	}
}

// runPod runs a pod on the node and waits until it is Running.
func (m *machine) runPod(name string, protected bool) {
	m.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName:    nodeName,
			HostNetwork: true,
			Containers: []corev1.Container{{
				Name: "workload", Image: embedded.WorkloadImage, ImagePullPolicy: corev1.PullNever,
				// Any free port: the pods share the machine's.
				Env: []corev1.EnvVar{{Name: "PORT", Value: "0"}},
			}},
		},
	}
	if protected {
		pod.Labels = map[string]string{guardv1alpha1.ExplicitDeletionLabel: guardv1alpha1.ExplicitDeletionRequired}
	}
	if _, err := m.client.CoreV1().Pods("default").Create(m.ctx, pod, metav1.CreateOptions{}); err != nil {
		m.t.Fatal(err)
	}
	m.await("pod "+name+" to run", func() error {
		pod, err := m.client.CoreV1().Pods("default").Get(m.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Running != nil {
			return nil
		}
		return fmt.Errorf("its status is %v", pod.Status)
	})
}

// awaitGuarded waits until the node runs the package's kubelet in that mode.
func (m *machine) awaitGuarded(mode string) {
	m.t.Helper()
	version := build.GuardedVersion(upstream)
	m.awaitKubelet(version)
	m.await("the metrics of the guard in mode "+mode, func() error {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.kubeletPID()))
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
	client := http.Client{Transport: insecureTransport(), Timeout: nodeChange}
	answer, err := client.Get("https://127.0.0.1:10250/metrics")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// restartAndExpect restarts the kubelet and waits until the journal of its unit has the
// text.
func (m *machine) restartAndExpect(text string) {
	m.t.Helper()
	// What earlier starts have said does not count.
	begin := m.run("journalctl", "--unit=kubelet", "--lines=0", "--show-cursor", "--quiet")
	_, cursor, _ := strings.Cut(strings.TrimSpace(begin), "-- cursor: ")
	m.run("systemctl", "restart", "--no-block", "kubelet")
	m.await("the journal of the kubelet to say "+text, func() error {
		journal := m.run("journalctl", "--unit=kubelet", "--no-pager", "--output=cat", "--after-cursor="+cursor)
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

func (m *machine) read(path string) string {
	m.t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(content)
}

func (m *machine) expectNoFile(paths ...string) {
	m.t.Helper()
	for _, path := range paths {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			m.t.Errorf("%s is still there (%v)", path, err)
		}
	}
}
