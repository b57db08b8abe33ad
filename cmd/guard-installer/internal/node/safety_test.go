package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// between calls f when the change has started and the drop-in is as before.
type between struct {
	*world
	f func()
}

func (b between) Report(ctx context.Context, report rollout.Report, mark *bool) error {
	if strings.HasPrefix(report.Message, "Restarting the kubelet") {
		b.f()
	}
	return b.world.Report(ctx, report, mark)
}

func TestOneInstallerOwnsTheNode(t *testing.T) {
	timeless(func(t *testing.T) {
		for words, want := range map[string]rollout.Phase{"guarded": rollout.Done, "guarded nostart": rollout.RolledBack, "guarded sick": rollout.RolledBack} {
			w := newWorld(t)
			w.image(program(words, "version="+guardedVersion))
			first := w.installer(brief(rollout.Audit))
			second := w.another(brief(rollout.Audit))
			first.Cluster = between{w, func() {
				report := step(t, second)
				assert.Equal(t, rollout.Waiting, report.Phase)
				assert.Contains(t, report.Message, "Another installer runs on this node: pod installer-1 of pool blue.")
			}}
			report := step(t, first)
			assert.Equal(t, want, report.Phase, report.Message)
			assert.Equal(t, want == rollout.Done, w.root.Exists(rollout.DropIn))
			assert.Equal(t, want == rollout.Done, w.is("guarded"))

			// The second one starts when the first has ended.
			first.disown()
			report = step(t, second)
			assert.Equal(t, want, report.Phase, report.Message)
		}
	})(t)
}

// Where the lock was of no use, nothing that was rolled back gets into its place.
func TestAChangeThatWasRolledBackIsNotMade(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		first := w.installer(brief(rollout.Audit))
		first.Cluster = between{w, func() {
			_, err := w.rollBack()
			require.NoError(t, err)
		}}
		report := step(t, first)
		assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
		assert.False(t, w.root.Exists(rollout.DropIn))
		assert.Equal(t, 1, w.started, "the old kubelet runs all the time")
	})(t)
}

func TestADropInThatCameAfterTheRollbackIsRolledBack(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Audit)) }))
		store := journal.Store{Root: w.root}
		wanted, err := w.root.ReadText(rollout.DropIn)
		require.NoError(t, err)
		entry, err := w.rollBack()
		require.NoError(t, err)
		require.Equal(t, journal.RolledBack, entry.State)
		w.file(rollout.DropIn, *wanted)
		require.NoError(t, w.Reload(context.Background()))
		require.NoError(t, w.start())

		installer := w.installer(brief(rollout.Audit))
		entry, err = installer.rollBack(context.Background(), entry, &failure{reason: rollout.ReasonInterrupted, message: "x"})
		require.NoError(t, err)
		assert.Equal(t, journal.RolledBack, entry.State)
		assert.False(t, w.root.Exists(rollout.DropIn))
		assert.False(t, w.is("guarded"))

		// That of another change is not.
		_, err = store.RollBack(context.Background(), w, "another", nil, rollout.ReasonInterrupted, "x")
		assert.ErrorIs(t, err, journal.ErrTaken)
	})(t)
}

// fills fills the disk when the kubelet is restarted.
type fills struct{ *world }

func (f fills) Restart(ctx context.Context, name string) error {
	err := f.world.Restart(ctx, name)
	f.full = true
	return err
}

func TestAFullDiskKeepsNoRollbackFromItsEnd(t *testing.T) {
	timeless(func(t *testing.T) {
		for _, before := range []rollout.Target{rollout.Stock, rollout.Enforce} {
			w := newWorld(t)
			require.Equal(t, rollout.Done, w.run(request(before)).Phase)
			old, started := w.running, w.started
			w.image(program("version="+guardedVersion, "guarded", "nostart"))
			wanted := with(brief(rollout.Audit), func(r *rollout.Request) { r.Image = "broken" })
			installer := w.installer(wanted)
			installer.Systemd = fills{w}
			report := step(t, installer)
			assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
			for range 3 {
				report = step(t, w.installer(wanted))
				assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
			}
			assert.Equal(t, string(old), string(w.running))
			assert.Equal(t, started+2, w.started, "the kubelet is restarted twice: for the change, and for the rollback")
		}
	})(t)
}

func TestTheTrialDoesWhatARollbackDoes(t *testing.T) {
	for name, c := range map[string]struct {
		// breaks is called at each step of the trial.
		breaks  func(w *world, what string) error
		message string
	}{
		"no room next to the drop-in": {func(_ *world, what string) error {
			if strings.HasPrefix(what, fmt.Sprint(host.Write)) && strings.Contains(what, "/kubelet.service.d/") {
				return syscall.ENOSPC
			}
			return nil
		}, "no space left on device"},
		"systemd does not answer": {func(w *world, _ string) error {
			w.silent = errors.New("permission denied")
			return nil
		}, "permission denied"},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			w.installer(brief(rollout.Audit))
			w.onStep = func(what, where string) error {
				if strings.Contains(where, "RollBackOrTry") {
					return c.breaks(w, what)
				}
				return nil
			}
			report, err := w.process.Step(context.Background())
			w.onStep, w.silent = nil, nil
			require.NoError(t, err)
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Equal(t, rollout.ReasonPreparation, report.Reason)
			assert.Contains(t, report.Message, c.message)
			assert.Equal(t, 1, w.started)
		}))
	}
}

func TestTheUnitsAreTriedAgain(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.installer(request(rollout.Audit)).writeUnits("/opt/installer", time.Minute))
	for _, name := range []string{runtimeUnits + "/" + rollbackUnit, units + "/" + recoverUnit} {
		data, err := w.root.Read(name)
		require.NoError(t, err)
		for _, line := range []string{"Restart=on-failure", "RestartSec=10", "StartLimitBurst=60", "StartLimitIntervalSec=86400"} {
			assert.Contains(t, string(data), "\n"+line+"\n", name)
		}
	}
}

func TestAChangeThatGetsToNoEndIsSaid(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Audit)) }))
		w.silent = errors.New("the connection was closed")
		installer := w.installer(brief(rollout.Audit))
		for range quickTries - 1 {
			_, err := installer.Step(context.Background())
			require.ErrorContains(t, err, "the connection was closed")
		}
		for range 2 {
			report := step(t, installer)
			assert.Equal(t, rollout.Failed, report.Phase)
			assert.Contains(t, report.Message, "The change of the kubelet is neither confirmed nor rolled back, after 5 tries: the connection was closed. ")
		}
		assert.Equal(t, 2, w.started)
		w.silent, installer.nextTry = nil, time.Time{}
		report := step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	})(t)
}

// A rollback that got halfway must not leave a kubelet that systemd would not start again.
func TestWhatIsKeptAfterHalfARollbackStays(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "unhealthy"))
		require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Enforce)) }))
		_, err := journal.Store{Root: w.root}.RollBack(context.Background(), refusesReload{w}, "", nil, rollout.ReasonInterrupted, "x")
		require.ErrorContains(t, err, "refused")
		require.False(t, w.root.Exists(rollout.DropIn))
		holdsA(w)
		report := w.run(brief(rollout.Enforce))
		assert.True(t, report.Kept, report.Message)
		assert.True(t, w.root.Exists(rollout.DropIn))
		assert.True(t, w.command.HasGuard())
		assert.Equal(t, 2, w.started)
	})(t)
}

type refusesReload struct{ *world }

func (refusesReload) Reload(context.Context) error { return errors.New("refused") }

func TestAnotherModeOrConfigurationIsNotDone(t *testing.T) {
	for name, restart := range map[string]bool{"the file was changed": false, "the kubelet was restarted with it": true} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			installer := w.installer(request(rollout.Enforce))
			report := step(t, installer)
			require.Equal(t, rollout.Done, report.Phase)
			entry, err := installer.store().Read()
			require.NoError(t, err)
			file := configurationOf(entry.Wanted)
			data, err := w.root.Read(file)
			require.NoError(t, err)
			require.Contains(t, string(data), "Enforce")
			w.file(file, strings.ReplaceAll(string(data), "Enforce", "Audit"))
			if restart {
				require.NoError(t, w.start())
			}
			report = step(t, installer)
			assert.Equal(t, rollout.Refused, report.Phase)
			assert.Equal(t, rollout.ReasonMode, report.Reason)
			assert.Contains(t, report.Message, file)
			assert.False(t, ready(report))

			// A new pod fixes it.
			report = w.run(request(rollout.Enforce))
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
			assert.True(t, w.process.configurationIntact(entry.Wanted).IsYes())
			answer, _, err := w.ask(context.Background(), "", "")
			require.NoError(t, err)
			assert.Equal(t, guard.Enforce, answer.Mode)
		}))
	}
	t.Run("the file is right again, and the kubelet has read the other one", inWorld(func(t *testing.T, w *world) {
		installer := w.installer(request(rollout.Enforce))
		_, err := installer.Step(context.Background())
		require.NoError(t, err)
		audits := func(ctx context.Context, address, pin string) (kubelet.Answer, string, error) {
			answer, pin, err := w.ask(ctx, address, pin)
			answer.Mode = guard.Audit
			return answer, pin, err
		}
		installer.Ask = audits
		require.NoError(t, w.start())
		report := step(t, installer)
		assert.Equal(t, rollout.Refused, report.Phase)
		assert.Contains(t, report.Message, "the guard does not run in mode Enforce any more")

		// A new pod does not say that it is done, either, and one that gets no answer says
		// nothing.
		fresh := w.installer(brief(rollout.Enforce))
		fresh.Request = request(rollout.Enforce)
		fresh.Ask = func(context.Context, string, string) (kubelet.Answer, string, error) {
			return kubelet.Answer{}, "", errors.New("no answer in time")
		}
		_, err = fresh.Step(context.Background())
		require.ErrorContains(t, err, "no answer in time")
		fresh.Ask = audits
		started := w.started
		report = step(t, fresh)
		assert.Equal(t, rollout.ReasonMode, report.Reason, report.Message)
		assert.Greater(t, w.started, started, "it tries to fix it")
	}))
}

func TestACertificateMayBeRotated(t *testing.T) {
	rotate := func(w *world) { w.certificate = "another" }
	t.Run("after a rollback", inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "nostart"))
		require.Equal(t, rollout.RolledBack, w.run(brief(rollout.Audit)).Phase)
		rotate(w)
		report := w.run(brief(rollout.Audit))
		assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
	}))
	t.Run("after a change that was left", inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "kills"))
		holdsA(w)
		require.True(t, w.run(brief(rollout.Enforce)).Kept)
		rotate(w)
		w.resume()
		report := w.run(brief(rollout.Enforce))
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	}))
}

func TestASoftRebootIsABoot(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Audit)) }))
		store := journal.Store{Root: w.root}
		entry, err := store.Recover(context.Background(), w, nil)
		require.NoError(t, err)
		require.Equal(t, journal.Switching, entry.State, "the timer runs")
		w.silent = errors.New("the connection was closed")
		_, err = store.Recover(context.Background(), w, nil)
		require.Error(t, err, "systemd tries it again")
		require.True(t, w.root.Exists(rollout.DropIn))

		w.silent, w.timer, w.pid, w.running = nil, false, 0, nil
		entry, err = store.Recover(context.Background(), w, nil)
		require.NoError(t, err)
		assert.Equal(t, journal.RolledBack, entry.State)
		assert.False(t, w.root.Exists(rollout.DropIn))
	})(t)
}

// The unit for a boot that comes late asks, as the timer's does.
func TestARecoveryNextToARunningKubeletQueriesIt(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Enforce)) }))
		holdsA(w)
		w.file("/proc/sys/kernel/random/boot_id", "boot-2\n")
		entry, err := journal.Store{Root: w.root}.Recover(context.Background(), w, w.installer(brief(rollout.Enforce)).holding().KeepReason)
		require.NoError(t, err)
		assert.True(t, entry.Kept())
		assert.True(t, w.root.Exists(rollout.DropIn))
	})(t)
}

func TestTheTimerThatASoftRebootEndedIsStartedAgain(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.True(t, dies(func() { w.dieAfterRestart().run(brief(rollout.Audit)) }))
		w.timer = false
		armed := false
		installer := w.installer(brief(rollout.Audit))
		installer.Ask = func(ctx context.Context, address, pin string) (kubelet.Answer, string, error) {
			armed = armed || w.timer
			return w.ask(ctx, address, pin)
		}
		report := step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.True(t, armed)
		assert.False(t, w.timer)
	})(t)
}

func TestAClockThatIsSetEndsNoChange(t *testing.T) {
	timeless(func(t *testing.T) {
		started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		entry := &journal.Entry{Started: started, Deadline: started.Add(time.Minute), Uptime: time.Hour}
		assert.Equal(t, time.Minute, timeLeft(entry, time.Hour), "the clock is years ahead")
		assert.Equal(t, 20*time.Second, timeLeft(entry, time.Hour+40*time.Second))
		assert.Negative(t, timeLeft(entry, 2*time.Hour))

		// The clock is set forward between the start and the verification.
		w := newWorld(t)
		installer := w.installer(brief(rollout.Audit))
		installer.Cluster = between{w, func() {
			data, err := w.root.Read(rollout.StateDir + "/journal.json")
			require.NoError(t, err)
			entry := entryOf(t, w)
			past, err := entry.Deadline.Add(-time.Hour).MarshalText()
			require.NoError(t, err)
			deadline, err := entry.Deadline.MarshalText()
			require.NoError(t, err)
			earlier, err := entry.Started.Add(-time.Hour).MarshalText()
			require.NoError(t, err)
			now, err := entry.Started.MarshalText()
			require.NoError(t, err)
			w.file(rollout.StateDir+"/journal.json", strings.NewReplacer(string(deadline), string(past), string(now), string(earlier)).Replace(string(data)))
		}}
		w.dieAfterRestart()
		require.True(t, dies(func() { _, _ = installer.Step(context.Background()) }))
		report := w.run(brief(rollout.Audit))
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	})(t)
}

func entryOf(t *testing.T, w *world) *journal.Entry {
	t.Helper()
	entry, err := journal.Store{Root: w.root}.Read()
	require.NoError(t, err)
	require.NotNil(t, entry)
	return entry
}

// oldHeartbeat is an API server with heartbeats by a clock that is set.
type oldHeartbeat struct {
	*world
	at func() time.Time
}

func (h oldHeartbeat) Heartbeat(context.Context) (time.Time, error) { return h.at(), h.reach() }

// Which heartbeat is new does not depend on the clock of the node, which may be set during
// the change.
func TestAHeartbeatIsNewWhenItIsAnotherOne(t *testing.T) {
	for name, c := range map[string]struct {
		// next is the nth heartbeat that is read.
		next   func(n int) time.Time
		want   rollout.Phase
		reason rollout.Reason
	}{
		"an old one, by a clock that was ahead": {
			func(int) time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }, rollout.RolledBack, rollout.ReasonNotReady,
		},
		"a new one, by a clock that was set back": {
			func(n int) time.Time { return time.Date(2000, 1, 1, 0, 0, 0, n, time.UTC) }, rollout.Done, "",
		},
		"the first one": {func(n int) time.Time {
			if n == 0 {
				return time.Time{}
			}
			return time.Now()
		}, rollout.Done, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				installer := w.installer(request(rollout.Audit))
				read := 0
				installer.Cluster = oldHeartbeat{w, func() time.Time { read++; return c.next(read - 1) }}
				report := step(t, installer)
				assert.Equal(t, c.want, report.Phase, report.Message)
				assert.Equal(t, c.reason, report.Reason)
			})
		})
	}
}

// An installer that was started again reads the deadline, which is by the earlier clock.
func TestAClockThatIsSetLeavesTheTimeToStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		require.True(t, dies(func() { w.dieAfterRestart().run(request(rollout.Audit)) }))
		entry := entryOf(t, w)
		entry.Started, entry.Deadline = entry.Started.Add(-time.Hour), entry.Deadline.Add(-time.Hour)
		data, err := json.Marshal(entry)
		require.NoError(t, err)
		w.file(rollout.StateDir+"/journal.json", string(data))
		installer := w.installer(request(rollout.Audit))
		w.whileVerified(installer, func(check int) { w.unready = check < 10 })
		report := step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	})
}

// A kubelet must not wait for a lock: its holder may wait for the kubelet.
func TestARecoveryDoesNotWaitForTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		require.True(t, dies(func() { w.dieAfterRestart().run(request(rollout.Audit)) }))
		store := journal.Store{Root: w.root}
		lock, err := w.root.TryLock(rollout.StateDir + "/lock")
		require.NoError(t, err)
		w.timer, w.pid, w.running = false, 0, nil
		started := time.Now()
		_, err = store.Recover(t.Context(), w, nil)
		require.ErrorIs(t, err, host.ErrLocked, "systemd tries it again")
		assert.LessOrEqual(t, time.Since(started), 3*time.Second)
		assert.Equal(t, journal.Switching, entryOf(t, w).State, "nothing was decided")
		assert.True(t, w.root.Exists(rollout.DropIn))

		// It is free before the time is over.
		time.AfterFunc(time.Second, func() { _ = lock.Close() })
		entry, err := store.Recover(t.Context(), w, nil)
		require.NoError(t, err)
		assert.Equal(t, journal.RolledBack, entry.State)
		assert.False(t, w.root.Exists(rollout.DropIn))
	})
}

func TestAnUpgradeDuringAChangeThatIsRolledBackIsReported(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "nostart"))
		installer := w.installer(brief(rollout.Audit))
		installer.Cluster = between{w, func() {
			require.NoError(t, w.root.Write("/usr/bin/kubelet", program("version=v1.36.4"), 0o755))
		}}
		report := step(t, installer)
		assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
		assert.Equal(t, stockVersion, report.Before.Version)
		assert.Equal(t, "v1.36.4", report.Now.Version)
		assert.Contains(t, report.Message, "The node's own kubelet runs again, which was upgraded during the change: v1.36.3 before, v1.36.4 now. ")

		// What could not be written restarts no kubelet that is the node's own.
		entry := entryOf(t, w)
		entry.State = journal.Switching
		data, err := json.Marshal(entry)
		require.NoError(t, err)
		w.file(rollout.StateDir+"/journal.json", string(data))
		started := w.started
		_, err = journal.Store{Root: w.root}.RollBack(t.Context(), w, "", nil, rollout.ReasonInterrupted, "x")
		require.NoError(t, err)
		assert.Equal(t, started, w.started)

		// Any other kubelet is not the node's own.
		w.file(fmt.Sprintf("/proc/%d/exe", w.pid), "another")
		report = w.run(brief(rollout.Audit))
		assert.Equal(t, rollout.Failed, report.Phase)
		assert.Contains(t, report.Message, "the program that runs has the checksum")
	})(t)
}

// green is a process for another pool that selects the node as well.
func (w *world) green(request rollout.Request) *Installer {
	i := w.another(request)
	i.Pool.Name, i.Owner = "green", fmt.Sprintf("pod installer-%d of pool green", w.processes)
	return i
}

func TestANodeOfTwoPoolsBelongsToTheOneThatHasReported(t *testing.T) {
	const belongs = "Nothing was changed: the node belongs to pool blue, which selects it as well. A node must be in one pool only"
	done := func(t *testing.T) (w *world, green *Installer) {
		w = newWorld(t)
		w.node.Labels = map[string]string{"x": "y"}
		w.pools = map[string]rollout.Pool{"blue": w.installer(request(rollout.Audit)).Pool}
		require.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
		return w, w.green(request(rollout.Enforce))
	}
	refuses := func(t *testing.T, w *world, green *Installer, message string) {
		t.Helper()
		written, started := len(w.reports), w.started
		report := step(t, green)
		assert.Equal(t, rollout.Refused, report.Phase)
		assert.Equal(t, rollout.ReasonOtherPool, report.Reason)
		assert.Contains(t, report.Message, message)
		assert.False(t, ready(report))
		asked := w.asked
		require.NoError(t, green.writeReport(t.Context(), report))
		require.NoError(t, green.writeReport(t.Context(), report))
		assert.Equal(t, 1, w.asked-asked, "a slot is released, once")
		assert.Len(t, w.reports, written, "the report on the Node stays that of the other pool")
		assert.Equal(t, started, w.started)
	}
	t.Run("while the other installer runs", timeless(func(t *testing.T) {
		w, green := done(t)
		refuses(t, w, green, "Nothing was changed: another installer runs on this node: pod installer-2 of pool blue. ")
	}))
	t.Run("after a boot, when it is first", timeless(func(t *testing.T) {
		w, green := done(t)
		w.process.disown()
		w.boot("boot-2")
		refuses(t, w, green, belongs)
		// It keeps nobody from the node.
		assert.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
	}))
	t.Run("after the Node was registered again", timeless(func(t *testing.T) {
		w, green := done(t)
		w.process.disown()
		w.node.Annotations = nil
		refuses(t, w, green, belongs)
	}))
	t.Run("while the API server is away", timeless(func(t *testing.T) {
		w, green := done(t)
		w.process.disown()
		w.away = true
		_, err := green.Step(t.Context())
		require.ErrorIs(t, err, errAway)
		assert.Nil(t, green.owned)
	}))
	for name, leave := range map[string]func(w *world){
		"until that pool is gone":            func(w *world) { w.pools = nil },
		"until that pool selects it no more": func(w *world) { w.node.Labels["x"] = "z" },
	} {
		t.Run(name, timeless(func(t *testing.T) {
			w, green := done(t)
			w.process.disown()
			refuses(t, w, green, belongs)
			leave(w)
			report := step(t, green)
			assert.Equal(t, rollout.Done, report.Phase, report.Message)
			require.NoError(t, green.writeReport(t.Context(), report))
			written, err := rollout.ReportOf(w.node)
			require.NoError(t, err)
			assert.Equal(t, "green", written.Pool)
		}))
	}
	t.Run("a change of the other that was interrupted", timeless(func(t *testing.T) {
		w, _ := done(t)
		require.True(t, dies(func() { w.dieAfterRestart().run(request(rollout.Enforce)) }))
		w.process.disown()
		report := step(t, w.green(request(rollout.Audit)))
		assert.Equal(t, rollout.ReasonOtherPool, report.Reason, report.Message)
		assert.Equal(t, journal.Confirmed, entryOf(t, w).State, "it is finished all the same")
		assert.False(t, w.timer)
	}))
}

// What a node is found to run counts when its kubelet has registered with it.
func TestANodeIsDoneWhenTheAPIServerKnowsItsKubelet(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		require.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
		require.NoError(t, journal.Store{Root: w.root}.Clear())
		installer := w.installer(request(rollout.Audit))
		other := otherVersion{world: w, version: stockVersion}
		installer.Cluster = &other
		report := step(t, installer)
		assert.Equal(t, rollout.Waiting, report.Phase)
		assert.Equal(t, rollout.ReasonNode, report.Reason)
		assert.Contains(t, report.Message, `it reports that it is done with v1.36.3+guard.0.1.0, but its kubelet has registered with the version "v1.36.3"`)
		other.version = guardedVersion
		report = step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Equal(t, 2, w.started)
	})(t)
}

// otherVersion is an API server with another version of the kubelet.
type otherVersion struct {
	*world
	version string
}

func (o *otherVersion) Node(ctx context.Context) (*corev1.Node, error) {
	node, err := o.world.Node(ctx)
	if err == nil {
		node.Status.NodeInfo.KubeletVersion = o.version
	}
	return node, err
}
