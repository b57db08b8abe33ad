package kubelet

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/record"
	kubeletconfiginternal "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// startWithGuardConfig calls NewMainKubelet with a guard configuration and with
// hardly anything else, and returns its error or panic.
func startWithGuardConfig(t *testing.T, file string, deps *Dependencies) (err error) {
	t.Helper()
	flags := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	guard.AddFlags(flags)
	was := flags.Lookup("guard-config").Value.String()
	if err := flags.Set("guard-config", file); err != nil {
		t.Fatal(err)
	}
	before := guard.Install(nil)
	t.Cleanup(func() {
		guard.Install(before)
		if err := flags.Set("guard-config", was); err != nil {
			t.Error(err)
		}
	})
	defer func() {
		// The guard starts before anything that these dependencies lack.
		if r := recover(); r != nil {
			err = errors.New("NewMainKubelet went on and panicked")
		}
	}()
	root := t.TempDir()
	_, err = NewMainKubelet(ktesting.Init(t),
		&kubeletconfiginternal.KubeletConfiguration{SyncFrequency: metav1.Duration{Duration: time.Minute}},
		deps, nil, "node", "node", []net.IP{}, "", "external", "", root, filepath.Join(root, "logs"), "", "",
		false, nil, nil, "", false, false, metav1.Duration{}, 1, 1, nil, 1, false)
	return err
}

func TestGuardStartFailsOnABadConfiguration(t *testing.T) {
	const header = "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\n"
	for name, test := range map[string]struct {
		// content of the file; empty: there is no file.
		content string
		want    string
	}{
		"missing file":   {want: "no such file"},
		"unknown field":  {content: header + "podselector: {}\nallowedCause: []\n", want: "allowedCause"},
		"unknown cause":  {content: header + "allowedCauses: [Sunset]\n", want: "allowedCauses[0]"},
		"empty selector": {content: header + "podSelector: {}\n", want: "podSelector"},
		"unknown mode":   {content: header + "mode: Maybe\n", want: "mode"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "guard.yaml")
			if test.content != "" {
				if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}

			err := startWithGuardConfig(t, file, &Dependencies{Recorder: &record.FakeRecorder{}})

			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("error %v, want one that names %s and %s", err, file, test.want)
			}
		})
	}
}

func TestGuardStartPutsTheLastLineInFrontOfTheRuntime(t *testing.T) {
	runtime := guardtest.Install(t)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	runtime.Run(pod)
	deps := &Dependencies{Recorder: &record.FakeRecorder{}, RemoteRuntimeService: runtime.Runtime}

	// The error is about what comes later.
	_ = startWithGuardConfig(t, "", deps)

	if err := deps.RemoteRuntimeService.StopContainer(context.Background(), "server", 0); !errors.Is(err, guard.ErrRefused) {
		t.Errorf("stop of a protected container through the kubelet's client: %v, want a refusal", err)
	}
}

// runKubeletVariable makes the test binary the process in which a kubelet runs:
// much of what Run starts never ends.
const runKubeletVariable = "GUARD_TEST_RUN_KUBELET"

// The condition of a pod follows its holds, because the guard requests syncs.
func TestGuardRunsWithTheKubelet(t *testing.T) {
	if os.Getenv(runKubeletVariable) == "" {
		command := exec.Command(os.Args[0], "-test.run=^TestGuardRunsWithTheKubelet$", "-test.timeout=30s")
		command.Env = append(os.Environ(), runKubeletVariable+"=1")
		if output, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
		return
	}
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	kubelet := guardTestKubelet{testKubelet.kubelet}
	kubelet.kubeClient = nil
	kubelet.volumeManager = volumemanager.NewFakeVolumeManager(nil, 0, nil, false)
	// Or housekeeping would sync the pod.
	kubelet.sourcesReady = config.NewSourcesReady(func(sets.Set[string]) bool { return false })
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	testKubelet.fakeRuntime.PodStatus = *runningStatus(pod)
	kubelet.podManager.AddPod(pod)
	go kubelet.Run(context.Background(), make(chan kubetypes.PodUpdate))

	guard.Refuse(pod, guard.Evicted, "memory")

	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, _ := kubelet.statusManager.GetPodStatus(pod.UID)
		for _, c := range status.Conditions {
			if c.Type == guard.PodKillRefused && c.Status == v1.ConditionTrue {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited 15 s for condition %s, the status is %+v", guard.PodKillRefused, status)
		}
	}
}

func TestGuardLimitsTheEventsOfTheKubelet(t *testing.T) {
	recorder := &record.FakeRecorder{}
	deps := &Dependencies{Recorder: recorder}
	err := startWithGuardConfig(t, "", deps)
	if deps.Recorder == record.EventRecorderLogger(recorder) {
		t.Errorf("the recorder of the kubelet is not the guard's (NewMainKubelet: %v)", err)
	}
}
