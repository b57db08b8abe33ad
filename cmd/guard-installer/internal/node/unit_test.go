package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/cmd/guard-installer/internal/unit/unittest"
	"kubelet-guard.io/pkg/rollout"
)

// use replaces the unit of the node, and starts the kubelet that it names.
func (w *world) use(u unittest.Unit) {
	w.t.Helper()
	for _, name := range []string{unitFile, kubeadmFile} {
		require.NoError(w.t, w.root.Remove(name))
	}
	u.Install(w.t, string(w.root))
	w.files, _ = unit.Files(w.root, rollout.KubeletUnit)
	command, err := unit.ExecStart(w.files, w.root.Read)
	if err != nil {
		return
	}
	w.command = command
	data := program("version=" + stockVersion)
	if command.Program == u.Script {
		data = []byte("#!/bin/sh\n")
	}
	require.NoError(w.t, w.root.Write(command.Program, data, 0o755))
	require.NoError(w.t, w.start())
	if process, err := w.root.Process(w.pid); err == nil {
		if config, ok := process.Flag("--config"); ok {
			w.file(config, "{}")
		}
		if folder, ok := process.Flag("--config-dir"); ok {
			w.file(folder+"/README", "")
		}
	}
}

func TestUnitsAsTheyAre(t *testing.T) {
	for _, u := range unittest.Units(t) {
		t.Run(u.Name, inWorld(func(t *testing.T, w *world) {
			w.use(u)
			refused := u.Refused
			if u.Installer != nil {
				refused = u.Installer
			}
			if u.Name == "later-drop-in" {
				refused = append(refused, "95-kubelet-guard-rollout.conf")
			}
			started := w.started
			report := w.run(request(rollout.Audit))
			if len(refused) > 0 {
				require.Equal(t, rollout.Refused, report.Phase, report.Message)
				for _, want := range refused {
					assert.Contains(t, report.Message, want)
				}
				assert.Equal(t, started, w.started, "the kubelet was restarted")
				assert.NotContains(t, w.tree(), rollout.DropIn)
				return
			}
			require.Equal(t, rollout.Done, report.Phase, report.Message)
			assert.True(t, strings.HasPrefix(w.command.Arguments, u.Arguments+" --guard-config="), w.command.Arguments)
			assert.Equal(t, u.Needs, w.command.Needs)

			report = w.run(request(rollout.Stock))
			require.Equal(t, rollout.Done, report.Phase, report.Message)
			assert.Equal(t, u.Arguments, w.command.Arguments)
		}))
	}
}

// stateful changes what systemd says about the kubelet.
type stateful struct {
	*world
	change func(*systemd.Unit)
}

func (s stateful) Unit(ctx context.Context, name string) (systemd.Unit, error) {
	u, err := s.world.Unit(ctx, name)
	s.change(&u)
	return u, err
}

func TestARestartThatStopsTheRuntimeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*systemd.Unit)
		want   string
	}{
		"a runtime that is part of the kubelet":  {func(u *systemd.Unit) { u.StoppedWith = []string{"containerd.service"} }, "systemd stops containerd.service whenever kubelet.service stops"},
		"a runtime that the kubelet has started": {func(u *systemd.Unit) { u.ControlGroup = "/system.slice/kubelet.service" }, "containerd-shim run in the control group of kubelet.service"},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			w.file("/proc/77/cgroup", "1:name=systemd:/../../system.slice/kubelet.service\n")
			w.file("/proc/77/comm", "containerd-shim\n")
			w.file("/proc/78/cgroup", "0::/../../system.slice/containerd.service\n")
			w.file("/proc/78/comm", "containerd\n")
			installer := w.installer(request(rollout.Audit))
			installer.Systemd = stateful{w, c.change}
			report := step(t, installer)
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Equal(t, rollout.ReasonUnit, report.Reason)
			assert.Contains(t, report.Message, c.want)
			assert.NotContains(t, report.Message, ", containerd run")
		}))
	}
}

func TestTheKubeletWantsTheUnitOfTheBoot(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.NoError(t, w.installer(request(rollout.Audit)).writeUnits("/opt/x", time.Minute))
		assert.Contains(t, w.tree(), "/etc/systemd/system/kubelet.service.wants/kubelet-guard-recover.service")
		data, err := w.root.Read("/etc/systemd/system/kubelet-guard-recover.service")
		require.NoError(t, err)
		assert.Contains(t, string(data), "WantedBy=kubelet.service\n")
	})(t)
}

// A unit that someone changes after the roll-out is reported. Its kubelet is restarted
// at the next request, and not by an installer that is started again.
func TestUnitChangedAfterTheRollOut(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		first := w.installer(request(rollout.Audit))
		report := step(t, first)
		require.Equal(t, rollout.Done, report.Phase, report.Message)

		w.file(kubeadmFile, "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_EXTRA_ARGS --v=4\n")
		require.NoError(t, w.Reload(context.Background()))
		started := w.started
		changed := func(i *Installer) {
			t.Helper()
			report := step(t, i)
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
			report = step(t, i)
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
			assert.Equal(t, rollout.ReasonUnitChanged, report.Reason)
			assert.Contains(t, report.Message, "the unit has --v=4 besides")
			assert.Equal(t, started, w.started, "the kubelet was restarted")
		}
		changed(first)
		changed(w.installer(request(rollout.Audit)))
		// One that finds the kubelet just starting, as after a boot.
		booting := w.installer(request(rollout.Audit))
		reads := 0
		booting.Systemd = stateful{w, func(u *systemd.Unit) {
			if reads++; reads == 1 {
				u.Active, u.MainPID = "activating", 0
			}
		}}
		changed(booting)

		report = w.run(with(request(rollout.Audit), func(r *rollout.Request) { r.Settle = metav1.Duration{Duration: 61 * time.Millisecond} }))
		require.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Empty(t, report.Reason)
		assert.Equal(t, started+1, w.started)
		assert.Contains(t, w.command.Arguments, "--v=4 --guard-config=")
	})(t)
}
