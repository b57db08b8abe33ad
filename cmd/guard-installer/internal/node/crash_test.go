package node

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// worlds has the world of each root: a step of a file is one of its world.
var worlds sync.Map

func TestMain(m *testing.M) {
	uptime = func() time.Duration { return time.Since(time.Unix(0, 0)) } // that of the bubble
	host.Step = func(root host.Root, operation host.Operation, name string) error {
		w, ok := worlds.Load(root)
		if !ok || strings.HasPrefix(name, "/proc") {
			return nil // no test's, or no file
		}
		if err := w.(*world).step(fmt.Sprintf("%s %s", operation, name)); err != nil {
			return err
		}
		needsRoom := operation == host.Write || operation == host.MakeFolder || operation == host.MakeLink
		if w.(*world).full && needsRoom {
			return unix.ENOSPC
		}
		return nil
	}
	os.Exit(m.Run())
}

// step is where a process may be killed and another one may act: every call that
// leaves the process, and every change of a file.
func (w *world) step(what string) error {
	if w.onStep == nil || w.inStep {
		return nil
	}
	w.inStep = true
	defer func() { w.inStep = false }()
	return w.onStep(what, where())
}

// where names the place in the code, with all its callers: a step in a loop is one place.
func where() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var places []string
	for {
		frame, more := frames.Next()
		if strings.Contains(frame.File, "/cmd/guard-installer/internal/") && !strings.HasSuffix(frame.File, "_test.go") {
			function := frame.Function[strings.LastIndex(frame.Function, "/")+1:]
			places = append(places, fmt.Sprintf("%s:%d", function, frame.Line))
		}
		if !more {
			return strings.Join(places, " < ")
		}
	}
}

// change is the target of the installer of a crash test.
type change struct {
	before rollout.Target
	target rollout.Target
	image  []string
}

var changes = map[string]change{
	"Enforce over the stock kubelet": {rollout.Stock, rollout.Enforce, []string{"guarded"}},
	"another version":                {rollout.Enforce, rollout.Enforce, []string{"guarded", "another"}},
	"a build that does not start":    {rollout.Enforce, rollout.Enforce, []string{"guarded", "nostart"}},
	"a build that does not listen":   {rollout.Stock, rollout.Enforce, []string{"guarded", "sick"}},
	"the stock kubelet":              {rollout.Enforce, rollout.Stock, []string{"guarded"}},
}

func (c change) request() rollout.Request {
	return rollout.Request{Target: c.target, Image: "changed", VerifyTimeout: metav1.Duration{Duration: 150 * time.Millisecond}, Settle: metav1.Duration{Duration: 4 * time.Millisecond}}
}

// prepare returns a world in which the change is about to be made.
func (c change) prepare(t *testing.T) *world {
	w := newWorld(t)
	if c.before != rollout.Stock {
		require.Equal(t, rollout.Done, w.run(request(c.before)).Phase)
	}
	if c.target != rollout.Stock {
		w.image(program(append(c.image, "version="+guardedVersion)...))
	}
	return w
}

// quick is a process for the request that does not wait for long.
func (w *world) quick(request rollout.Request) *Installer {
	i := w.installer(request)
	i.Poll, i.Recovery = time.Millisecond, 10*time.Millisecond
	return i
}

// allSteps, in the environment, has every actor act at every step. Else the installer is
// killed at every step, some of the others act at every call of systemd, and each of them at
// one step of fewer.
const (
	allSteps = "CRASH_ALL_STEPS"
	fewer    = 8
)

// actor does something in the middle of a change.
type actor struct {
	// always: it acts at every step, without allSteps, too; calls: at every call of systemd.
	always, calls bool
	// waits: it needs the lock of the journal, and waits for it.
	waits bool
	// act is called at a step, and returns its error.
	act func(w *world, c change) error
	// after is called when the installer has ended or was killed.
	after func(w *world)
	// next is what is requested of the node afterwards; nil: the same.
	next func(c change) change
}

// killed ends the process that takes the step.
func killed(*world, change) error { panic(crashed{}) }

var actors = map[string]actor{
	"the installer is killed and started again": {always: true, act: killed},
	"the timer, after the installer was killed": {calls: true, act: killed, after: func(w *world) {
		if w.timer {
			w.retry = dies(func() { _, _ = w.rollBack() })
		}
	}},
	"the timer": {waits: true, act: func(w *world, _ change) error {
		if w.timer {
			_, err := w.rollBack()
			assert.NoError(w.t, err)
		}
		return nil
	}},
	"a second installer": {act: func(w *world, c change) error {
		first := w.process
		second := w.another(c.request())
		second.Recovery = first.Recovery
		defer second.disown()
		report, err := second.Step(context.Background())
		if first.owned == nil {
			return nil // it was first, and has ended
		}
		assert.NoError(w.t, err)
		assert.Equal(w.t, rollout.Waiting, report.Phase, report.Message)
		assert.Contains(w.t, report.Message, "Another installer runs on this node: "+first.Owner)
		return nil
	}},
	"the installer is killed, and another mode is requested": {calls: true, act: killed, next: func(c change) change {
		c.target = rollout.Audit
		return c
	}},
	"a boot":        {calls: true, act: killed, after: func(w *world) { w.boot("boot-2") }},
	"a soft reboot": {act: killed, after: func(w *world) { w.boot("boot-1") }},
	"the distribution's kubelet is upgraded": {act: func(w *world, _ change) error {
		require.NoError(w.t, w.root.Write("/usr/bin/kubelet", program("version=v1.36.4"), 0o755))
		return w.start()
	}},
	"the disk is full": {act: func(w *world, _ change) error { w.full = true; return nil }},
	"the disk is full, and the installer is killed": {act: func(w *world, _ change) error { w.full = true; panic(crashed{}) }},
	"the API server is away":                        {act: func(w *world, _ change) error { w.away = true; return nil }},
	"systemd does not answer":                       {act: func(w *world, _ change) error { w.silent = errors.New("the connection was closed"); return nil }},
}

// boot starts the node again, and returns when its kubelet was started. The earlier pods run again.
func (w *world) boot(id string) {
	w.pid, w.running, w.timer, w.retry = 0, nil, false, false
	if id != "boot-1" {
		w.file("/proc/sys/kernel/random/boot_id", id+"\n")
		for _, name := range []string{rollbackTimer, rollbackUnit} {
			require.NoError(w.t, w.root.Remove(filepath.Join(runtimeUnits, name)))
		}
	}
	require.NoError(w.t, w.Reload(context.Background()))
	if w.root.Exists(filepath.Join(wanted, recoverUnit)) && w.root.Exists(filepath.Join(units, recoverUnit)) {
		holding := Holding{Root: w.root, Systemd: w, Protected: w.protected, Poll: time.Millisecond}
		_, err := journal.Store{Root: w.root}.Recover(context.Background(), w, holding.KeepReason)
		require.NoError(w.t, err)
	}
	require.NoError(w.t, w.start())
}

// At every step of a change, another process acts. Nobody has to name the steps: what the
// change does without it is recorded first.
func TestAtEveryStepAnotherActs(t *testing.T) {
	for changeName, c := range changes {
		t.Run(changeName, func(t *testing.T) {
			t.Parallel()
			var places []string
			synctest.Test(t, func(t *testing.T) {
				w := c.prepare(t)
				w.onStep = func(what, where string) error {
					if place := what + " at " + where; !slices.Contains(places, place) {
						places = append(places, place)
					}
					return nil
				}
				w.attempt(c)
				w.onStep = nil
			})
			require.Greater(t, len(places), 40)
			for number, actorName := range slices.Sorted(maps.Keys(actors)) {
				a := actors[actorName]
				t.Run(actorName, timeless(func(t *testing.T) {
					outcomes := map[rollout.Phase]int{}
					for n, place := range places {
						acts := a.always || a.calls && strings.HasPrefix(place, "systemd at ") || (n+number)%fewer == 0
						if !acts && os.Getenv(allSteps) == "" {
							continue
						}
						if phase, acted := c.disturb(t, a, place); acted {
							outcomes[phase]++
						}
						if t.Failed() {
							t.Fatalf("in step %d of %d: %s", n, len(places), place)
						}
					}
					t.Log(len(places), "steps:", outcomes)
				}))
			}
		})
	}
}

// attempt has one process work on the change.
func (w *world) attempt(c change) (rollout.Report, error) {
	installer := w.quick(c.request())
	report, err := installer.Step(context.Background())
	if err == nil {
		_ = installer.writeReport(context.Background(), report)
		w.neverLies(report)
	}
	return report, err
}

// disturb makes the change and has the actor act when it gets to the place. Afterwards
// all faults are gone, and the next installers have to bring the node to an end.
func (c change) disturb(t *testing.T, a actor, place string) (end rollout.Phase, acted bool) {
	w := c.prepare(t)
	due := false
	w.onStep = func(what, where string) error {
		due = due || what+" at "+where == place
		if !due || acted || a.waits && strings.Contains(where, "journal.Store.locked") {
			return nil
		}
		acted = true
		return a.act(w, c)
	}
	_ = dies(func() { _, _ = w.attempt(c) })
	w.onStep = nil
	w.process.disown()
	if !acted {
		return "", false // a loop that took a turn less
	}
	w.isSafe()
	if a.after != nil {
		a.after(w)
		w.isSafe()
	}
	started := w.started
	for range 3 { // what is full stays so for a while
		if w.full {
			_ = dies(func() { _, _ = w.attempt(c) })
			if w.retry {
				_, err := w.rollBack()
				w.retry = err != nil
			}
			w.isSafe()
		}
	}
	assert.LessOrEqual(t, w.started-started, 2, "a full disk does not restart the kubelet again and again")
	w.full, w.away, w.silent = false, false, nil
	if a.next != nil {
		c = a.next(c)
	}
	var report rollout.Report
	for range 4 {
		if w.retry {
			_, err := w.rollBack()
			w.retry = err != nil
		}
		next, err := w.attempt(c)
		require.NoError(t, err)
		w.isSafe()
		if report = next; next.Phase == rollout.Done || next.Phase == rollout.RolledBack {
			break
		}
	}
	w.isFinal(c, report)
	return report.Phase, true
}

// neverLies checks a report against what runs.
func (w *world) neverLies(report rollout.Report) {
	w.t.Helper()
	entry, err := w.process.store().Read()
	require.NoError(w.t, err)
	if report.Phase == rollout.RolledBack {
		assert.False(w.t, w.runs(entry), "rolled back is said, and the new kubelet runs")
	}
	if report.Phase == rollout.Done && report.Target.Guarded() {
		assert.True(w.t, w.is("guarded"), "done is said, and the previous kubelet runs")
	}
}

// runs reports whether the kubelet of the entry runs, and not the previous one.
func (w *world) runs(entry *journal.Entry) bool {
	if entry == nil || w.running == nil || ptr.Equal(entry.Previous, entry.Wanted) {
		return false
	}
	process, err := w.root.Process(w.pid)
	require.NoError(w.t, err)
	return process.SHA256 == entry.Kubelet.SHA256 && process.SHA256 != entry.Before.SHA256
}

// isSafe checks what must be so at any time: what has not been verified has a process that
// rolls it back.
func (w *world) isSafe() {
	w.t.Helper()
	entry, err := journal.Store{Root: w.root}.Read()
	require.NoError(w.t, err)
	assert.Len(w.t, w.containers, 3)
	current, err := w.root.ReadText(rollout.DropIn)
	require.NoError(w.t, err)
	switch {
	case entry == nil || entry.State == journal.Confirmed:
	case entry.State == journal.RolledBack:
		assert.False(w.t, w.runs(entry), "the journal says rolled back, and the new kubelet runs")
		assert.True(w.t, ptr.Equal(current, entry.Previous), "the journal says rolled back, and the drop-in is that of the change")
	case ptr.Equal(current, entry.Wanted) || w.runs(entry):
		recovers := w.root.Exists(filepath.Join(wanted, recoverUnit)) && w.root.Exists(filepath.Join(units, recoverUnit))
		assert.True(w.t, recovers, "no boot would roll the change back")
		assert.True(w.t, w.timer || w.retry, "no timer rolls the change back")
	}
}

// isFinal checks a node that no process changes any more.
func (w *world) isFinal(c change, report rollout.Report) {
	w.t.Helper()
	entry, err := w.process.store().Read()
	require.NoError(w.t, err)
	if entry != nil {
		assert.NotEqual(w.t, journal.Switching, entry.State)
	}
	upgraded := word(w.stockProgram(), "version") != stockVersion
	switch {
	case report.Phase == rollout.Done:
		assert.Equal(w.t, c.target.Guarded(), w.is("guarded"))
	case report.Phase == rollout.RolledBack:
		process, err := w.root.Process(w.pid)
		require.NoError(w.t, err)
		if upgraded && c.before == rollout.Stock {
			assert.Equal(w.t, word(w.stockProgram(), "version"), report.Now.Version)
		} else {
			assert.Equal(w.t, entry.Before.SHA256, process.SHA256)
		}
	default:
		assert.Fail(w.t, "neither done nor rolled back", "%s %s: %s", report.Phase, report.Reason, report.Message)
	}
	assert.Equal(w.t, w.command.HasGuard(), w.is("guarded"), "the kubelet that runs is the one of the drop-in")
	assert.False(w.t, w.timer)
	assert.False(w.t, w.retry)
	for _, name := range w.tree() {
		for _, part := range []string{"kubelet-guard-recover", "kubelet-guard-rollback", ".previous", "rolled-back", ".guard-installer-"} {
			assert.NotContains(w.t, name, part)
		}
	}
}

func (w *world) stockProgram() []byte {
	data, err := w.root.Read("/usr/bin/kubelet")
	require.NoError(w.t, err)
	return data
}

// Every call that leaves the installer is a step.
func TestEveryCallIsAStep(t *testing.T) {
	w := newWorld(t)
	installer := reflect.ValueOf(w.installer(request(rollout.Audit))).Elem()
	calls := map[string]reflect.Value{}
	for n := range installer.NumField() {
		field := installer.Type().Field(n)
		if field.Type.Kind() == reflect.Func {
			calls[field.Name] = installer.Field(n)
		}
	}
	for _, in := range []reflect.Type{reflect.TypeFor[Systemd](), reflect.TypeFor[Cluster]()} {
		for n := range in.NumMethod() {
			calls[in.Method(n).Name] = reflect.ValueOf(w).MethodByName(in.Method(n).Name)
		}
	}
	require.Greater(t, len(calls), 15)
	for name, call := range calls {
		steps := 0
		w.onStep = func(string, string) error { steps++; return nil }
		var arguments []reflect.Value
		for n := range call.Type().NumIn() {
			in := call.Type().In(n)
			switch in {
			case reflect.TypeFor[context.Context]():
				arguments = append(arguments, reflect.ValueOf(context.Background()))
			case reflect.TypeFor[*corev1.Node]():
				tainted := &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: rollout.UnguardedTaint}}}}
				arguments = append(arguments, reflect.ValueOf(tainted))
			default:
				arguments = append(arguments, reflect.Zero(in))
			}
		}
		call.Call(arguments)
		assert.Positive(t, steps, name)
	}
}

// Every change of a file of the node is a step, and is made by the package host.
func TestEveryChangeOfAFileIsAStep(t *testing.T) {
	changing := map[string][]string{
		"os":   {"Chmod", "Chown", "Create", "CreateTemp", "Link", "Mkdir", "MkdirAll", "MkdirTemp", "OpenFile", "Remove", "RemoveAll", "Rename", "Symlink", "Truncate", "WriteFile"},
		"unix": {"Mkdir", "Rmdir", "Unlink", "Rename", "Renameat2", "Open", "Openat", "Symlink", "Mount", "Flock"},
	}
	for _, dir := range []string{"../host", "../journal", ".", "../containers", "../unit", "../cri", "../systemd", "../kubelet"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			require.NoError(t, err)
			for _, declaration := range parsed.Decls {
				function, ok := declaration.(*ast.FuncDecl)
				if !ok || function.Body == nil {
					continue
				}
				changes, steps := "", false
				ast.Inspect(function.Body, func(n ast.Node) bool {
					call, ok := n.(*ast.CallExpr)
					if !ok {
						return true
					}
					selector, ok := call.Fun.(*ast.SelectorExpr)
					if !ok {
						return true
					}
					steps = steps || selector.Sel.Name == "step"
					if in, ok := selector.X.(*ast.Ident); ok && slices.Contains(changing[in.Name], selector.Sel.Name) {
						changes = in.Name + "." + selector.Sel.Name
					}
					return true
				})
				if changes != "" {
					assert.True(t, dir == "../host" && steps, "%s: %s calls %s and not step", file, function.Name.Name, changes)
				}
			}
		}
	}
}
