package node

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

func with(r rollout.Request, change func(*rollout.Request)) rollout.Request {
	change(&r)
	return r
}

func TestRollOutAndBack(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		fresh := w.tree()
		running := slices.Clone(w.containers)

		report := w.run(request(rollout.Observe))
		assert.Equal(t, rollout.Observed, report.Phase, report.Message)
		assert.Equal(t, stockVersion, report.Now.Version)
		assert.Equal(t, guardedVersion, report.Offered.Version)
		assert.Len(t, report.Offered.SHA256, 64)
		assert.Equal(t, 3, report.Containers)
		assert.Equal(t, fresh, w.tree(), "who observes writes nothing")
		assert.Equal(t, 1, w.started)

		report = w.run(request(rollout.Audit))
		require.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, stockVersion, report.Before.Version)
		assert.Equal(t, rollout.Kubelet{Version: guardedVersion, Mode: guard.Audit, SHA256: report.Offered.SHA256, Path: "/opt/kubelet-guard/" + report.Offered.SHA256 + "/kubelet"}, report.Now)
		assert.Equal(t, "/opt/kubelet-guard/"+report.Offered.SHA256+"/kubelet", w.command.Program)
		assert.Regexp(t, `^\$KUBELET_CONFIG_ARGS \$KUBELET_EXTRA_ARGS --guard-config=/etc/kubernetes/kubelet-guard/[0-9a-f]{64}\.yaml$`, w.command.Arguments)
		assert.Equal(t, 2, w.started)
		assert.False(t, w.timer)
		assert.False(t, w.slotTaken)
		for _, name := range w.tree() {
			assert.NotContains(t, name, "kubelet-guard-rollback")
			assert.NotContains(t, name, "kubelet-guard-recover")
		}

		// The pod was started again, as after a boot.
		report = w.run(request(rollout.Audit))
		assert.Equal(t, rollout.Done, report.Phase)
		assert.Equal(t, stockVersion, report.Before.Version)
		assert.Equal(t, 2, w.started)

		report = w.run(request(rollout.Enforce))
		require.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, guard.Enforce, report.Now.Mode)
		assert.Equal(t, guard.Audit, report.Before.Mode)

		w.image(program("version=v1.36.3+guard.0.2.0", "guarded"))
		report = w.run(with(request(rollout.Enforce), func(r *rollout.Request) { r.Image = "image-2" }))
		require.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, "v1.36.3+guard.0.2.0", report.Now.Version)
		kept, err := w.root.Folder(rollout.InstallDir)
		require.NoError(t, err)
		assert.Len(t, kept, 2, "the kubelet that runs and the previous one")

		report = w.run(request(rollout.Stock))
		require.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, rollout.Kubelet{Version: stockVersion, SHA256: report.Now.SHA256, Path: "/usr/bin/kubelet"}, report.Now)
		assert.Equal(t, fresh, w.tree(), "nothing of a roll-out is left")
		assert.Equal(t, running, w.containers)

		report = w.run(request(rollout.Stock))
		assert.Equal(t, rollout.Done, report.Phase)
		assert.Equal(t, 5, w.started)
	})(t)
}

func TestWhatIsWrongIsRolledBack(t *testing.T) {
	for name, c := range map[string]struct {
		kubelet []byte
		want    rollout.Reason
		stopped []string
	}{
		"a kubelet that does not start":       {program("version="+guardedVersion, "guarded", "nostart"), rollout.ReasonNotStarted, nil},
		"a kubelet that does not answer":      {program("version="+guardedVersion, "guarded", "sick"), rollout.ReasonNotHealthy, nil},
		"a kubelet that starts without guard": {program("version=" + guardedVersion), rollout.ReasonUnguarded, nil},
		"a kubelet that stops containers":     {program("version="+guardedVersion, "guarded", "kills"), rollout.ReasonContainers, []string{"ns/b/main", "ns/c/main"}},
	} {
		t.Run(name, timeless(func(t *testing.T) {
			for _, before := range []rollout.Target{rollout.Stock, rollout.Enforce} {
				w := newWorld(t)
				require.Equal(t, rollout.Done, w.run(request(before)).Phase)
				files := w.tree()
				command, version := w.command, word(w.running, "version")
				started := w.started

				w.image(c.kubelet)
				wanted := with(request(rollout.Audit), func(r *rollout.Request) { r.Image = "broken" })
				report := w.run(wanted)
				assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
				assert.Equal(t, c.want, report.Reason, report.Message)
				assert.Equal(t, c.stopped, report.Stopped)
				assert.Equal(t, version, report.Now.Version)
				assert.Equal(t, command, w.command)
				assert.Equal(t, started+2, w.started)
				assert.True(t, w.slotTaken, "the slot is kept, so that the roll-out stops")
				assert.True(t, w.stopped)
				assert.True(t, rollout.Marked(w.node))
				assert.False(t, w.timer)
				for _, name := range files {
					assert.True(t, w.root.Exists(name), name)
				}

				// Started again, it stays as it is.
				report = w.run(wanted)
				assert.Equal(t, rollout.RolledBack, report.Phase)
				assert.Equal(t, started+2, w.started)

				// Someone resumes: it is tried again.
				w.resume()
				w.startContainers("second")
				report = w.run(wanted)
				assert.Equal(t, rollout.RolledBack, report.Phase)
				assert.Equal(t, started+4, w.started)

				// Back to what was requested before, which it has.
				w.image(program("version="+guardedVersion, "guarded"))
				report = w.run(request(before))
				assert.Equal(t, rollout.Done, report.Phase, report.Message)
				assert.Equal(t, started+4, w.started)
				assert.False(t, rollout.Marked(w.node))
				assert.False(t, w.slotTaken)
			}
		}))
	}
}

func TestRollBackWithoutTheUnit(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "nostart"))
		installer := w.installer(request(rollout.Audit))
		started := false
		// The unit works when it is tried, and not when it is needed.
		installer.Systemd = failSecond{w, &started}
		report := step(t, installer)
		assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
		assert.Equal(t, stockVersion, word(w.running, "version"))
	})(t)
}

type failSecond struct {
	*world
	tried *bool
}

func (f failSecond) Start(ctx context.Context, name string) error {
	if name == rollbackUnit && *f.tried {
		return errors.New("exec format error")
	}
	*f.tried = *f.tried || name == rollbackUnit
	return f.world.Start(ctx, name)
}

func dies(f func()) (died bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crashed); !ok {
				panic(r)
			}
			died = true
		}
	}()
	f()
	return false
}

func TestRefusals(t *testing.T) {
	const dropIns = "/etc/systemd/system/kubelet.service.d/"
	reload := func(w *world) {
		require.NoError(w.t, w.Reload(context.Background()))
		require.NoError(w.t, w.start())
	}
	for name, c := range map[string]struct {
		prepare func(w *world)
		request rollout.Request
		reason  rollout.Reason
		message string
	}{
		"another minor version": {func(w *world) { w.image(program("version=v1.35.4+guard.0.1.0", "guarded")) }, request(rollout.Audit), rollout.ReasonVersion,
			"the image's kubelet is v1.35.4+guard.0.1.0, the node's own (/usr/bin/kubelet) is v1.36.3: another minor version. Use an image for v1.36, or install v1.35 as the node's own kubelet first"},
		"newer than the API server": {func(w *world) { w.server = "v1.35.9" }, request(rollout.Audit), rollout.ReasonVersion, "newer than the API server (v1.35.9)"},
		"a feature gate that is gone": {func(w *world) { w.unaccepted = "unrecognized feature gate: NoSuchGate" }, request(rollout.Audit), rollout.ReasonConfig,
			"the image's kubelet (v1.36.3+guard.0.1.0) would not start with the flags and the configuration of the node's kubelet: unrecognized feature gate: NoSuchGate. Change those first"},
		"another architecture":  {func(w *world) { w.image(programFor(elf.EM_RISCV, "version="+guardedVersion)) }, request(rollout.Audit), rollout.ReasonArchitecture, "is for EM_RISCV"},
		"no guard in the image": {func(w *world) { w.image(program("version=" + stockVersion)) }, request(rollout.Audit), rollout.ReasonBuild, "is v1.36.3, which has no guard"},
		"another build": {func(w *world) {}, with(request(rollout.Audit), func(r *rollout.Request) {
			r.KubeletChecksums = map[string]string{architecture(): strings.Repeat("0", 64)}
		}), rollout.ReasonBuild, "was the tag of the image moved?"},
		"another version":  {func(w *world) {}, with(request(rollout.Audit), func(r *rollout.Request) { r.KubeletVersion = "v1.36.4+guard.0.1.0" }), rollout.ReasonBuild, "the request names v1.36.4+guard.0.1.0"},
		"a wrapper script": {func(w *world) { w.file("/usr/bin/kubelet", "#!/bin/sh\n"); reload(w) }, request(rollout.Audit), rollout.ReasonUnit, "which is not a program (a script?)"},
		"another program": {func(w *world) {
			w.file(kubeadmFile, "[Service]\nExecStart=\nExecStart=/usr/bin/k3s agent\n")
			w.file("/usr/bin/k3s", string(program("version=v1.36.3")))
			reload(w)
		}, request(rollout.Audit), rollout.ReasonUnit, "not named like a kubelet"},
		"no command": {func(w *world) { w.file(kubeadmFile, "[Service]\nExecStart=\n") }, request(rollout.Audit), rollout.ReasonUnit, "no ExecStart="},
		"a package": {func(w *world) {
			w.file(dropIns+"90-kubelet-guard.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --guard-config=/x\n")
			reload(w)
		}, request(rollout.Audit), rollout.ReasonForeignGuard, "90-kubelet-guard.conf runs a guarded kubelet already"},
		"the flag in a variable":           {func(w *world) { w.file("/proc/1001/cmdline", "/usr/bin/kubelet\x00--guard-config=/etc/x\x00") }, request(rollout.Audit), rollout.ReasonForeignGuard, "which no roll-out installed"},
		"the flag, and stock is requested": {func(w *world) { w.file("/proc/1001/cmdline", "/usr/bin/kubelet\x00--guard-config=/etc/x\x00") }, request(rollout.Stock), rollout.ReasonForeignGuard, "which no roll-out installed"},
		"a later drop-in": {func(w *world) {
			w.file(dropIns+"99-own.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $A\n")
			reload(w)
		}, request(rollout.Audit), rollout.ReasonUnit, "99-own.conf sets ExecStart= and its name sorts behind 95-kubelet-guard-rollout.conf"},
		"our name taken":           {func(w *world) { w.file(rollout.DropIn, "[Service]\n") }, request(rollout.Audit), rollout.ReasonUnit, "was not written by a roll-out"},
		"not reloaded":             {func(w *world) { w.stale = true }, request(rollout.Audit), rollout.ReasonUnit, "run systemctl daemon-reload"},
		"a kubelet in trouble":     {func(w *world) { w.running = program("sick") }, request(rollout.Audit), rollout.ReasonKubelet, "the kubelet is not healthy: connection refused"},
		"replaced, not restarted":  {func(w *world) { w.file("/usr/bin/kubelet", string(program("version=v1.36.4"))) }, request(rollout.Audit), rollout.ReasonKubelet, "was replaced without a restart"},
		"a node that is not ready": {func(w *world) { w.node.Status.Conditions[0].Status = corev1.ConditionFalse }, request(rollout.Audit), rollout.ReasonNode, "node n is not ready"},
		"no runtime":               {func(w *world) { require.NoError(w.t, w.root.Remove("/run/containerd/containerd.sock")) }, request(rollout.Audit), rollout.ReasonRuntime, "no container runtime found"},
		"a unit that rolls back and cannot be started": {func(w *world) { w.broken = errors.New("permission denied") }, request(rollout.Audit), rollout.ReasonPreparation, "was tried and does not work: permission denied"},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			c.prepare(w)
			started, running := w.started, w.running
			report := w.run(c.request)
			// What ends by itself holds nobody up.
			passes := slices.Contains([]rollout.Reason{rollout.ReasonKubelet, rollout.ReasonNode, rollout.ReasonRuntime, rollout.ReasonSpace}, c.reason)
			want := rollout.Refused
			if passes {
				want = rollout.Waiting
			}
			assert.Equal(t, want, report.Phase)
			assert.Equal(t, c.reason, report.Reason, report.Message)
			assert.Contains(t, report.Message, c.message)
			assert.Contains(t, report.Message, "Nothing was changed: ")
			assert.Equal(t, started, w.started)
			assert.Equal(t, running, w.running)
			assert.Equal(t, !passes, w.slotTaken)
			assert.Equal(t, !passes, w.stopped)
			assert.False(t, rollout.Marked(w.node))

			// An installer that only observes reports the same and takes no slot.
			if c.request.Target == rollout.Audit && c.reason != rollout.ReasonPreparation {
				w.slotTaken = false
				c.request.Target = rollout.Observe
				observed := w.run(c.request)
				assert.Equal(t, report.Message, observed.Message)
				assert.Equal(t, rollout.Refused, observed.Phase)
				assert.False(t, w.slotTaken)
				assert.True(t, ready(observed))
			}
		}))
	}
}

func TestHeldPodsNeedAYes(t *testing.T) {
	enforcing := func(t *testing.T) *world {
		w := newWorld(t)
		require.Equal(t, rollout.Done, w.run(request(rollout.Enforce)).Phase)
		w.held = []guard.PodState{{Namespace: "ns", Name: "a", UID: "uid-a", State: guard.Held}, {Namespace: "ns", Name: "b", UID: "uid-b", State: guard.Protected}}
		return w
	}
	exempt := func(r *rollout.Request) {
		r.Configuration = "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\nallowedCauses: [Evicted]\n"
	}
	for name, wanted := range map[string]rollout.Request{
		"Audit":                 request(rollout.Audit),
		"Stock":                 request(rollout.Stock),
		"another configuration": with(request(rollout.Enforce), exempt),
	} {
		t.Run(name, timeless(func(t *testing.T) {
			w := enforcing(t)
			report := w.run(wanted)
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Equal(t, rollout.ReasonHeld, report.Reason)
			assert.Contains(t, report.Message, "1 pods are held and would stop with what is requested: ns/a")
			assert.Equal(t, []string{"ns/a"}, report.HeldPods)
			assert.Equal(t, 2, report.Protected)

			// A yes is for the pods that were shown.
			wanted.ReleaseHeldUIDs = []types.UID{"uid-a"}
			w.held = append(w.held, guard.PodState{Namespace: "ns", Name: "c", UID: "uid-c", State: guard.Held})
			report = w.run(wanted)
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Contains(t, report.Message, "1 pods are held and would stop with what is requested: ns/c")
			w.held = w.held[:2]

			// With it the held one may stop, and no other.
			installer := w.installer(wanted)
			installer.Ask = func(ctx context.Context, address, pin string) (kubelet.Answer, string, error) {
				if w.started == 3 && len(w.containers) == 3 {
					w.containers = w.containers[1:]
				}
				return w.ask(ctx, address, pin)
			}
			report = step(t, installer)
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
		}))
	}
	t.Run("another build with the same configuration holds on", timeless(func(t *testing.T) {
		w := enforcing(t)
		w.image(program("version=v1.36.3+guard.0.2.0", "guarded"))
		report := w.run(with(request(rollout.Enforce), func(r *rollout.Request) { r.Image = "image-2" }))
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	}))
	t.Run("nobody can say what is held", timeless(func(t *testing.T) {
		w := enforcing(t)
		w.running = program("sick")
		report := w.run(request(rollout.Stock))
		assert.Equal(t, rollout.ReasonHeld, report.Reason)
		assert.Contains(t, report.Message, "nobody knows which pods it holds")
	}))
}

func TestNothingStartsWithoutASlotOrWhilePaused(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.slot = false
		report := w.run(request(rollout.Audit))
		assert.Equal(t, rollout.Waiting, report.Phase)
		assert.Equal(t, "it waits for one of 1 slots of the pool", report.Message)
		w.slot, w.why = true, "the roll-out is paused"
		report = w.run(request(rollout.Audit))
		assert.Equal(t, rollout.Waiting, report.Phase)
		assert.Equal(t, "the roll-out is paused", report.Message)
		assert.Equal(t, 1, w.started)
		assert.False(t, w.slotTaken)
	})(t)
}

func TestContainersMayEndByThemselves(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		installer := w.installer(request(rollout.Audit))
		// One pod is deleted and one container ends while the node is being verified.
		w.pods[1].DeletionTimestamp = &metav1.Time{Time: time.Now()}
		w.whileVerified(installer, func(int) { w.containers = w.containers[:1] })
		report := step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Contains(t, report.Message, "2 of the 3 containers that ran before have ended since")
	})(t)
}

func TestChangedByHandIsLeftAlone(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		installer := w.installer(request(rollout.Audit))
		report := step(t, installer)
		require.Equal(t, rollout.Done, report.Phase)

		// The API server may be away without any consequence.
		w.away = true
		report = step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase)
		w.away = false

		require.NoError(t, w.root.Remove(rollout.DropIn))
		require.NoError(t, w.Reload(context.Background()))
		require.NoError(t, w.start())
		report = step(t, installer)
		assert.Equal(t, rollout.Refused, report.Phase)
		assert.Contains(t, report.Message, "someone has changed kubelet.service")
		assert.False(t, ready(report))
		assert.Equal(t, 3, w.started)

		// A new pod fixes it.
		assert.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
		assert.Equal(t, 4, w.started)
	})(t)
}

// brief is a request that waits for less than others.
func brief(target rollout.Target) rollout.Request {
	return with(request(target), func(r *rollout.Request) { r.VerifyTimeout.Duration = time.Second })
}

// holdsA has the guard hold pod a.
func holdsA(w *world) {
	w.held = []guard.PodState{{Namespace: "ns", Name: "a", UID: "uid-a", State: guard.Held}}
}

// savesA has the guard protect pod a, and nothing known about whether it holds it.
func savesA(w *world) { w.file("/var/lib/kubelet/guard/pods/uid-a.pod", "") }

// ends are who ends a change that has failed: its installer, or the timer of one that was
// killed. With silent, systemd does not respond meanwhile.
func ends(target rollout.Target, silent bool) map[string]func(w *world) rollout.Report {
	var silence error
	if silent {
		silence = errors.New("the connection was closed")
	}
	return map[string]func(w *world) rollout.Report{
		"the installer": func(w *world) rollout.Report {
			installer := w.installer(brief(target))
			running := installer.Running
			installer.Running = func(ctx context.Context, socket string) ([]cri.Container, error) {
				if w.started == 2 { // the new one is inspected
					w.silent = silence
				}
				return running(ctx, socket)
			}
			report := step(w.t, installer)
			require.NoError(w.t, installer.writeReport(w.t.Context(), report))
			return report
		},
		"the timer": func(w *world) rollout.Report {
			require.True(w.t, dies(func() { w.dieAfterRestart().run(brief(target)) }))
			w.silent = silence
			_, err := w.rollBack()
			require.NoError(w.t, err)
			w.silent = nil
			return w.run(brief(target))
		},
	}
}

func TestWhatIsHeldIsNotKilledByARollback(t *testing.T) {
	const notRolledBack = "The change was not rolled back: the guard "
	for name, c := range map[string]struct {
		kubelet []string
		prepare func(w *world)
		target  rollout.Target
		reason  rollout.Reason
		// left is what the report of a change reports that was kept in place; empty when it is
		// rolled back.
		left string
	}{
		"containers were stopped, pods are held":   {[]string{"guarded", "kills"}, holdsA, rollout.Enforce, rollout.ReasonContainers, "holds 1 pods now that the old kubelet would stop: ns/a"},
		"containers were stopped, nothing is held": {[]string{"guarded", "kills"}, savesA, rollout.Enforce, rollout.ReasonContainers, ""},
		"not healthy, pods are held":               {[]string{"guarded", "unhealthy"}, holdsA, rollout.Enforce, rollout.ReasonNotHealthy, "holds 1 pods now that the old kubelet would stop: ns/a"},
		"not healthy, nothing is held":             {[]string{"guarded", "unhealthy"}, savesA, rollout.Enforce, rollout.ReasonNotHealthy, ""},
		"not ready, pods are held": {[]string{"guarded"}, func(w *world) { holdsA(w); w.unready = true }, rollout.Enforce, rollout.ReasonNotReady,
			"holds 1 pods now that the old kubelet would stop: ns/a"},
		"another version, pods are held": {[]string{"guarded", "says=v1.36.4"}, holdsA, rollout.Enforce, rollout.ReasonOtherKubelet,
			"holds 1 pods now that the old kubelet would stop: ns/a"},
		"no answer, pods are protected": {[]string{"guarded", "deaf"}, savesA, rollout.Enforce, rollout.ReasonNotHealthy,
			"protects 1 pods here and does not report whether it holds some that the old kubelet would stop (no answer in time)"},
		"no answer, the state directory cannot be read": {[]string{"guarded", "deaf"}, func(w *world) { w.file("/var/lib/kubelet/guard/pods", "") }, rollout.Enforce, rollout.ReasonNotHealthy,
			"does not report whether it holds pods that the old kubelet would stop (no answer in time), and it is unknown how many it protects ("},
		"no answer, no pods are protected":      {[]string{"guarded", "deaf"}, func(*world) {}, rollout.Enforce, rollout.ReasonNotHealthy, ""},
		"no answer, the guard only audits":      {[]string{"guarded", "deaf"}, savesA, rollout.Audit, rollout.ReasonNotHealthy, ""},
		"nothing listens":                       {[]string{"guarded", "sick"}, savesA, rollout.Enforce, rollout.ReasonNotHealthy, ""},
		"it does not start":                     {[]string{"guarded", "nostart"}, savesA, rollout.Enforce, rollout.ReasonNotStarted, ""},
		"it runs without the guard":             {nil, savesA, rollout.Enforce, rollout.ReasonUnguarded, ""},
		"containers were stopped and it audits": {[]string{"guarded", "kills"}, holdsA, rollout.Audit, rollout.ReasonContainers, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for path, end := range ends(c.target, false) {
				t.Run(path, inWorld(func(t *testing.T, w *world) {
					w.image(program(append(c.kubelet, "version="+guardedVersion)...))
					c.prepare(w)
					report := end(w)
					assert.True(t, w.slotTaken)
					assert.True(t, rollout.Marked(w.node))
					assert.False(t, ready(report))
					assert.False(t, w.timer && path == "the installer")
					want := c.reason
					if path == "the timer" {
						want = rollout.ReasonInterrupted
					}
					assert.Equal(t, want, report.Reason, report.Message)
					if c.left == "" {
						assert.False(t, report.Kept)
						assert.NotContains(t, report.Message, notRolledBack)
						if c.reason != rollout.ReasonNotReady {
							assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
						}
						assert.Equal(t, stockVersion, word(w.running, "version"))
						assert.Equal(t, 3, w.started)
						return
					}
					assert.Equal(t, rollout.Failed, report.Phase)
					assert.True(t, report.Kept)
					assert.Contains(t, report.Message, notRolledBack+c.left)
					assert.Contains(t, report.Message, "See kubectl guard holds")
					assert.Equal(t, guardedVersion, word(w.running, "version"))
					assert.Equal(t, guard.Enforce, report.Now.Mode)
					_, err := w.rollBack()
					require.NoError(t, err)
					assert.Equal(t, rollout.Failed, w.run(brief(c.target)).Phase, "started again it says the same")
					assert.Equal(t, 2, w.started, "the kubelet is not restarted")
				}))
			}
		})
	}
}

// A systemd that does not respond says nothing about what is held.
func TestSystemdThatDoesNotAnswerIsNoReasonToRollBack(t *testing.T) {
	for name, c := range map[string]struct {
		kubelet []string
		prepare func(w *world)
		left    string
	}{
		"pods are held":                   {[]string{"kills"}, holdsA, "holds 1 pods now that the old kubelet would stop: ns/a"},
		"nothing is held":                 {[]string{"kills"}, savesA, ""},
		"no answer, pods are protected":   {[]string{"deaf"}, savesA, "protects 1 pods here and does not report whether it holds some"},
		"no answer, nothing is protected": {[]string{"deaf"}, func(*world) {}, ""},
		"nothing listens":                 {[]string{"sick"}, savesA, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for path, end := range ends(rollout.Enforce, true) {
				t.Run(path, inWorld(func(t *testing.T, w *world) {
					w.image(program(append(c.kubelet, "guarded", "version="+guardedVersion)...))
					c.prepare(w)
					report := end(w)
					assert.Equal(t, c.left != "", report.Kept, report.Message)
					if c.left != "" {
						assert.Contains(t, report.Message, "The change was not rolled back: the guard "+c.left)
						assert.Equal(t, guardedVersion, word(w.running, "version"))
					} else {
						assert.Equal(t, stockVersion, word(w.running, "version"))
					}
				}))
			}
		})
	}
}

func TestWhatWasKeptIsVerifiedAgain(t *testing.T) {
	resume := func(w *world) rollout.Report {
		w.resume()
		return w.run(request(rollout.Enforce))
	}
	left := func(t *testing.T, words ...string) *world {
		w := newWorld(t)
		w.image(program(append(words, "version="+guardedVersion, "guarded")...))
		holdsA(w)
		require.True(t, w.run(request(rollout.Enforce)).Kept)
		return w
	}
	t.Run("it is healthy but for what was stopped", timeless(func(t *testing.T) {
		w := left(t, "kills")
		report := resume(w)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Contains(t, report.Message, "2 of the 3 containers that ran before have ended since")
		assert.False(t, w.slotTaken)
		assert.False(t, rollout.Marked(w.node))
		assert.Equal(t, 2, w.started)
		assert.Equal(t, rollout.Done, w.run(request(rollout.Enforce)).Phase)
	}))
	t.Run("it got healthy", timeless(func(t *testing.T) {
		w := left(t, "unhealthy")
		w.running = bytes.ReplaceAll(w.running, []byte("unhealthy"), nil)
		report := resume(w)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, 2, w.started)
	}))
	t.Run("it is as it was", timeless(func(t *testing.T) {
		w := left(t, "unhealthy")
		report := resume(w)
		assert.True(t, report.Kept)
		assert.Equal(t, rollout.ReasonNotHealthy, report.Reason)
		assert.True(t, rollout.Marked(w.node), "it is marked again")
		assert.Equal(t, 2, w.started)
	}))
	t.Run("it is not healthy, and nothing is held any more", timeless(func(t *testing.T) {
		w := left(t, "unhealthy")
		w.held = nil
		report := resume(w)
		assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
		assert.Equal(t, rollout.ReasonNotHealthy, report.Reason)
		assert.True(t, rollout.Marked(w.node))
		assert.Equal(t, stockVersion, word(w.running, "version"))
	}))
	t.Run("more pods were stopped meanwhile", timeless(func(t *testing.T) {
		w := left(t, "unhealthy")
		w.stop(w.containers[2])
		report := resume(w)
		assert.True(t, report.Kept)
		assert.Equal(t, rollout.ReasonNotHealthy, report.Reason, "who resumes has seen them")
	}))
	t.Run("someone has restored the old kubelet", timeless(func(t *testing.T) {
		w := left(t, "unhealthy")
		require.NoError(t, w.root.Remove(rollout.DropIn))
		require.NoError(t, w.Reload(context.Background()))
		require.NoError(t, w.start())
		w.held = nil
		w.image(program("version="+guardedVersion, "guarded"))
		report := resume(w)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, 4, w.started)
	}))
	t.Run("another build is not kept from a node that is not healthy", timeless(func(t *testing.T) {
		w := left(t, "unhealthy")
		w.image(program("version=v1.36.3+guard.0.2.0", "guarded"))
		report := w.run(with(request(rollout.Enforce), func(r *rollout.Request) { r.Image = "image-2" }))
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	}))
	t.Run("the way back needs a yes", timeless(func(t *testing.T) {
		for _, target := range []rollout.Target{rollout.Audit, rollout.Stock} {
			w := left(t, "unhealthy")
			w.image(program("version="+guardedVersion, "guarded"))
			report := w.run(request(target))
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Equal(t, rollout.ReasonHeld, report.Reason, report.Message)
			report = w.run(with(request(target), func(r *rollout.Request) { r.ReleaseHeldUIDs = []types.UID{"uid-a"} }))
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
		}
	}))
}

func TestWhatTheOldKubeletHoldsAsWellIsNoReasonToLeaveAChange(t *testing.T) {
	exempt := func(r *rollout.Request) {
		r.Image = "broken"
		r.Configuration = "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\nallowedCauses: [Evicted]\n"
	}
	for name, c := range map[string]struct {
		change func(r *rollout.Request)
		before []guard.PodState
		left   bool
	}{
		"the same configuration":                  {func(r *rollout.Request) { r.Image = "broken" }, nil, false},
		"another configuration":                   {exempt, nil, true},
		"another configuration, held before, too": {func(r *rollout.Request) { exempt(r); r.ReleaseHeldUIDs = []types.UID{"uid-a"} }, []guard.PodState{{Namespace: "ns", Name: "a", UID: "uid-a", State: guard.Held}}, false},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			require.Equal(t, rollout.Done, w.run(brief(rollout.Enforce)).Phase)
			w.held = c.before
			w.image(program("version="+guardedVersion, "guarded", "kills"))
			installer := w.installer(with(brief(rollout.Enforce), c.change))
			installer.Protected = func(ctx context.Context, address, pin string) (*guard.PodList, error) {
				holdsA(w)
				return w.protected(ctx, address, pin)
			}
			report := step(t, installer)
			assert.Equal(t, c.left, report.Kept, report.Message)
			assert.Equal(t, rollout.ReasonContainers, report.Reason)
		}))
	}
}

func TestAnInstallerThatWasAsleepFindsWhatTheTimerHasLeft(t *testing.T) {
	for name, c := range map[string]struct {
		words []string
		want  rollout.Phase
	}{
		"healthy":     {[]string{"guarded"}, rollout.Done},
		"not healthy": {[]string{"guarded", "unhealthy"}, rollout.Failed},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			w.image(program(append(c.words, "version="+guardedVersion)...))
			holdsA(w)
			installer := w.installer(brief(rollout.Enforce))
			w.whileVerified(installer, func(check int) {
				if check == 1 {
					entry, err := w.rollBack()
					require.NoError(t, err)
					require.True(t, entry.Kept())
				}
			})
			report := step(t, installer)
			assert.Equal(t, c.want, report.Phase, report.Message)
			assert.Equal(t, c.want == rollout.Failed, report.Kept)
			if report.Kept {
				assert.Equal(t, rollout.ReasonInterrupted, report.Reason, "what it saw before it slept is no news")
			}
			assert.Equal(t, 2, w.started)
		}))
	}
}

// A boot in the middle is rolled back before a kubelet starts. Where that was not
// possible, the new one may hold pods by the time the installer comes.
func TestABootThatWasNotRecoveredFrom(t *testing.T) {
	timeless(func(t *testing.T) {
		for held, want := range map[bool]rollout.Phase{true: rollout.Failed, false: rollout.RolledBack} {
			w := newWorld(t)
			require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Enforce)) }))
			w.file("/proc/sys/kernel/random/boot_id", "boot-2\n")
			require.NoError(t, w.start())
			if held {
				holdsA(w)
			}
			report := w.run(brief(rollout.Enforce))
			assert.Equal(t, want, report.Phase, report.Message)
			assert.Equal(t, rollout.ReasonInterrupted, report.Reason)
			assert.Equal(t, held, report.Kept)
		}
	})(t)
}

func TestTokenFileOnTheNode(t *testing.T) {
	dir := memory(t)
	w := newWorld(t)
	installer := w.installer(request(rollout.Audit))
	installer.TokenFile = filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(installer.TokenFile, []byte("secret"), 0o600))
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(installer.TokenFile, &stat))
	const volume = "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~projected/kube-api-access-x"
	mount := func(root string) {
		w.file("/proc/1/mountinfo", fmt.Sprintf("36 35 98:0 / / rw - ext4 /dev/sda rw\n40 36 %d:%d %s %s rw - tmpfs tmpfs rw\n", unix.Major(stat.Dev), unix.Minor(stat.Dev), root, volume))
	}
	mount("/")
	assert.Empty(t, installer.hostTokenFile(), "there is no such file on the node")
	require.NoError(t, os.MkdirAll(w.root.Path(volume), 0o700))
	if err := os.Link(installer.TokenFile, w.root.Path(volume+"/token")); err != nil {
		t.Skip("the two folders are not in one file system:", err)
	}
	assert.Equal(t, volume+"/token", installer.hostTokenFile())
	mount("/elsewhere")
	assert.Empty(t, installer.hostTokenFile())
	require.NoError(t, w.root.Remove("/proc/1/mountinfo"))
	assert.Empty(t, installer.hostTokenFile())
}

func TestOldKubeletThatIsBrokenTooIsSaid(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "nostart"))
		installer := w.installer(request(rollout.Audit))
		installer.Systemd = breaksOld{w}
		report := step(t, installer)
		assert.Equal(t, rollout.Failed, report.Phase)
		assert.Contains(t, report.Message, "The old kubelet was restored and is not healthy: connection refused")
	})(t)
}

// breaksOld has the stock kubelet not answer once it was replaced.
type breaksOld struct{ *world }

func (b breaksOld) Unit(ctx context.Context, name string) (systemd.Unit, error) {
	if b.started == 3 {
		b.running = append(slices.Clone(b.running), " sick"...)
	}
	return b.world.Unit(ctx, name)
}

func TestRunReportsAndSetsReady(t *testing.T) {
	w := newWorld(t)
	installer := w.installer(request(rollout.Audit))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	installer.SetReady = func(ready bool) error {
		if ready {
			cancel()
		}
		return nil
	}
	go func() { done <- installer.Run(ctx) }()
	require.NoError(t, <-done)
	var phases []string
	for _, report := range w.reports {
		phases = append(phases, fmt.Sprint(report.Phase))
	}
	assert.Equal(t, []string{"Installing", "Installing", "Done"}, phases)
	assert.Equal(t, w.reports[2].RequestID, request(rollout.Audit).ID())
}
