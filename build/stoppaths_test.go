package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stopTree is a kubelet with a stop behind an interface, a wrapper around it, a hook in
// the function that decides, and one further down.
func stopTree() map[string]string {
	return map[string]string{
		"go.mod": "module example.test/kubernetes\n\ngo 1.24\n",
		"cmd/kubelet/main.go": `package main

import (
	"example.test/kubernetes/pkg/kubelet"
	"example.test/kubernetes/pkg/runtime"
)

func main() { kubelet.New(runtime.Instrumented{Service: runtime.Remote{}}).Sync("a") }
`,
		"pkg/runtime/runtime.go": `package runtime

// Service talks to the container runtime.
type Service interface {
	Start(id string)
	Stop(id string)
}

type Remote struct{}

func (Remote) Start(string) {}

func (Remote) Stop(string) {}

// Instrumented counts calls.
type Instrumented struct{ Service }

func (i Instrumented) Stop(id string) { i.Service.Stop(id) }
`,
		"pkg/kubelet/guard/guard.go": `package guard

func Refuse(string) bool { return false }

func Allow(string) {}
`,
		"pkg/kubelet/kubelet.go": `package kubelet

import (
	"example.test/kubernetes/pkg/kubelet/guard"
	"example.test/kubernetes/pkg/runtime"
)

type Kubelet struct{ runtime runtime.Service }

func New(r runtime.Service) *Kubelet { return &Kubelet{r} }

func (k *Kubelet) kill(id string) {
	k.runtime.Stop(id)
}

func (k *Kubelet) Sync(id string) {
	k.runtime.Start(id)
	if unwanted(id) {
		k.kill(id)
	}
	if id == "" && !guard.Refuse(id) {
		k.evict(id)
	}
}

func unwanted(id string) bool { return id == "" && !guard.Refuse(id) }

func (k *Kubelet) evict(id string) {
	k.kill(id)
	guard.Allow(id)
}
`,
	}
}

// stopTable is the table of stopTree.
func stopTable() StopPaths {
	return StopPaths{
		Interfaces: []StopInterface{{Name: "pkg/runtime.Service", Harmless: []string{"Start"}}},
		Areas: []StopArea{{
			Title: "Containers",
			Stops: []Stop{{Function: "pkg/runtime.Service.Stop", Does: "stops a container"}, {Function: "os.RemoveAll", Does: "removes", Within: []string{"pkg/kubelet"}, Unused: true}},
			Paths: []StopPath{
				{Caller: "pkg/kubelet.Kubelet.kill", Calls: []string{"pkg/runtime.Service.Stop"}, Callers: true},
				{Caller: "pkg/kubelet.Kubelet.Sync", Calls: []string{"pkg/kubelet.Kubelet.kill"}, Hooks: []StopHook{{Call: "Refuse", In: "pkg/kubelet.unwanted"}}},
				{Caller: "pkg/kubelet.Kubelet.evict", Calls: []string{"pkg/kubelet.Kubelet.kill"}, Hooks: []StopHook{{Call: "Refuse", In: "pkg/kubelet.Kubelet.Sync"}}},
			},
		}},
	}
}

// graphOf makes a tree of files and loads its calls.
func graphOf(t *testing.T, files map[string]string) (*callGraph, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
	}
	return loadCallGraph(context.Background(), dir, fakeModule, stopPathsMain, buildTags)
}

func messages(errs []error) string {
	if len(errs) == 0 {
		return ""
	}
	return errors.Join(errs...).Error()
}

func TestTheTableOfStopPathsIsComparedWithTheTree(t *testing.T) {
	g, err := graphOf(t, stopTree())
	require.NoError(t, err)

	counts, errs := stopTable().check(g)
	require.Empty(t, messages(errs), "the wrapper around the runtime is no caller: it implements the stop")
	assert.Equal(t, "2 stops, 3 uses on the way to them: 2 behind a hook, 0 open, 1 need none or are decided by their callers", counts.String())

	for name, test := range map[string]struct {
		change func(*StopPaths)
		want   []string
	}{
		"a caller is missing": {
			func(s *StopPaths) { s.Areas[0].Paths = s.Areas[0].Paths[:2] },
			[]string{
				"pkg/kubelet/kubelet.go:29: pkg/kubelet.Kubelet.evict uses pkg/kubelet.Kubelet.kill, and the table does not know it.",
				"  - caller: pkg/kubelet.Kubelet.evict\n    calls: [pkg/kubelet.Kubelet.kill]",
			},
		},
		"the first caller is missing": {
			func(s *StopPaths) { s.Areas[0].Paths = s.Areas[0].Paths[1:] },
			[]string{
				"pkg/kubelet/kubelet.go:13: pkg/kubelet.Kubelet.kill uses pkg/runtime.Service.Stop, and the table does not know it.",
				"pkg/kubelet.Kubelet.Sync: pkg/kubelet.Kubelet.kill is neither a stop nor a caller whose callers count",
			},
		},
		"a caller is gone": {
			func(s *StopPaths) { s.Areas[0].Paths[1].Caller = "pkg/kubelet.Kubelet.SyncAll" },
			[]string{"pkg/kubelet.Kubelet.SyncAll: the tree has no such function any more", "pkg/kubelet/kubelet.go:19: pkg/kubelet.Kubelet.Sync uses"},
		},
		"a caller calls something else": {
			func(s *StopPaths) { s.Areas[0].Paths[1].Calls = []string{"pkg/runtime.Service.Stop"} },
			[]string{"pkg/kubelet/kubelet.go:16: pkg/kubelet.Kubelet.Sync does not use pkg/runtime.Service.Stop any more"},
		},
		"a hook is not there": {
			func(s *StopPaths) { s.Areas[0].Paths[1].Hooks[0].In = "pkg/kubelet.Kubelet.kill" },
			[]string{"pkg/kubelet/kubelet.go:12: pkg/kubelet.Kubelet.kill does not call guard.Refuse, which the table names as the hook of pkg/kubelet.Kubelet.Sync"},
		},
		"a hook's function is gone": {
			func(s *StopPaths) { s.Areas[0].Paths[1].Hooks[0].In = "pkg/kubelet.wanted" },
			[]string{"pkg/kubelet.Kubelet.Sync: hook guard.Refuse: the tree has no function pkg/kubelet.wanted"},
		},
		"a hook is on another way": {
			func(s *StopPaths) { s.Areas[0].Paths[2].Hooks[0].In = "pkg/kubelet.unwanted" },
			[]string{"pkg/kubelet/kubelet.go:26: pkg/kubelet.unwanted with the hook guard.Refuse is not on the way of pkg/kubelet.Kubelet.evict"},
		},
		"a hook comes after the call": {
			func(s *StopPaths) { s.Areas[0].Paths[2].Hooks = []StopHook{{Call: "Allow"}} },
			[]string{"pkg/kubelet/kubelet.go:29: pkg/kubelet.Kubelet.evict uses pkg/kubelet.Kubelet.kill before it calls guard.Allow"},
		},
		"a hook is in no line": {
			func(s *StopPaths) { s.Areas[0].Paths[1].Hooks, s.Areas[0].Paths[1].Reason = nil, "harmless" },
			[]string{"pkg/kubelet/kubelet.go:26: the hook guard.Refuse in pkg/kubelet.unwanted is in no line of the table"},
		},
		"a stop is gone": {
			func(s *StopPaths) {
				s.Areas[0].Stops = append(s.Areas[0].Stops, Stop{Function: "pkg/runtime.Service.Remove", Does: "removes"})
			},
			[]string{"stop pkg/runtime.Service.Remove: the tree has no such function, or nothing uses it"},
		},
		"a method of an interface is new": {
			func(s *StopPaths) { s.Interfaces[0].Harmless = []string{"Restart"} },
			[]string{
				"interface pkg/runtime.Service: the table does not know the method Start; list pkg/runtime.Service.Start among the stops, or Start as harmless",
				"interface pkg/runtime.Service: it has no method Restart any more",
			},
		},
		"a stop is called harmless": {
			func(s *StopPaths) { s.Interfaces[0].Harmless = []string{"Start", "Stop"} },
			[]string{"interface pkg/runtime.Service: Stop is both a stop and harmless"},
		},
		"an interface is gone": {
			func(s *StopPaths) { s.Interfaces[0].Name = "pkg/runtime.Runtime" },
			[]string{"interface pkg/runtime.Runtime: the program has no such interface"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := stopTable()
			test.change(&table)
			_, errs := table.check(g)
			for _, want := range test.want {
				assert.Contains(t, messages(errs), want)
			}
		})
	}

	t.Run("a hook is connected by something other than calls", func(t *testing.T) {
		table := stopTable()
		hooks := &table.Areas[0].Paths[2].Hooks
		*hooks = append(*hooks, StopHook{Call: "Refuse", In: "pkg/kubelet.unwanted", Via: "a channel"})
		_, errs := table.check(g)
		assert.Empty(t, messages(errs))
	})
	t.Run("a hook is not in front of a stop", func(t *testing.T) {
		table := stopTable()
		table.Areas[0].Paths[1].Hooks, table.Areas[0].Paths[1].Reason = nil, "harmless"
		table.OtherHooks = []OtherHook{{Call: "Refuse", In: "pkg/kubelet.unwanted", Refuses: "a question"}}
		_, errs := table.check(g)
		assert.Empty(t, messages(errs))
		table.OtherHooks[0].In = "pkg/kubelet.wanted"
		_, errs = table.check(g)
		assert.Contains(t, messages(errs), "pkg/kubelet.wanted does not call guard.Refuse any more; remove it from otherHooks")
	})
	t.Run("an open path is counted", func(t *testing.T) {
		table := stopTable()
		table.Areas[0].Paths[2].Open = "one more is needed"
		counts, errs := table.check(g)
		assert.Empty(t, messages(errs))
		assert.Equal(t, 1, counts.open)
	})
}

// Each of these callers reaches a stop in another way.
func TestACallerThatTheTableDoesNotKnowFailsTheCheck(t *testing.T) {
	files := stopTree()
	maps.Copy(files, map[string]string{
		"pkg/kubelet/fake.go": `package kubelet

import (
	"io"
	"os"

	"example.test/kubernetes/pkg/runtime"
)

func direct(r runtime.Service) { r.Stop("a") }

func concrete() { runtime.Remote{}.Stop("a") }

func wrapped(i runtime.Instrumented) { i.Stop("a") }

type stopper interface{ Stop(id string) }

func narrow(s stopper) { s.Stop("a") }

func handedOver(r runtime.Service) func(string) { return r.Stop }

func inLiteral(r runtime.Service) {
	go func() { r.Stop("a") }()
}

func closes(c io.Closer) { _ = c.Close() }

func deferred(k *Kubelet) { defer k.kill("a") }

func generic[T runtime.Service](t T) { t.Stop("a") }

var variable = func(k *Kubelet) { k.kill("a") }

type embeds struct{ *Kubelet }

func promoted(e embeds) { e.kill("a") }

func foreign(f *os.File) { _ = f.Close() }

func removes() error { return os.RemoveAll("/a") }
`,
		// Not in the kubelet: out of the prefix, in a test, on another system, not linked.
		"pkg/runtime/more.go":            "package runtime\n\nimport \"os\"\n\nfunc elsewhere() error { return os.RemoveAll(\"/a\") }\n",
		"pkg/kubelet/kubelet_test.go":    "package kubelet\n\nfunc inTest(k *Kubelet) { k.kill(\"a\") }\n",
		"pkg/kubelet/kubelet_windows.go": "package kubelet\n\nfunc onWindows(k *Kubelet) { k.kill(\"a\") }\n",
		"pkg/controller/controller.go":   "package controller\n\nimport \"example.test/kubernetes/pkg/runtime\"\n\nfunc notLinked(r runtime.Service) { r.Stop(\"a\") }\n",
	})
	g, err := graphOf(t, files)
	require.NoError(t, err)
	table := stopTable()
	table.Areas[0].Stops = append(table.Areas[0].Stops, Stop{Function: "io.Closer.Close", Does: "closes"})
	_, errs := table.check(g)
	got := messages(errs)
	// Where the call is in fake.go, by the text of its line or of the one above.
	lines := strings.Split(files["pkg/kubelet/fake.go"], "\n")
	for _, want := range []struct{ caller, callee string }{
		{"closes", "io.Closer.Close"},
		{"direct", "pkg/runtime.Service.Stop"},
		{"concrete", "pkg/runtime.Service.Stop"},
		{"wrapped", "pkg/runtime.Service.Stop"},
		{"narrow", "pkg/runtime.Service.Stop"},
		{"handedOver", "pkg/runtime.Service.Stop"},
		{"inLiteral", "pkg/runtime.Service.Stop"},
		{"deferred", "pkg/kubelet.Kubelet.kill"},
		{"generic", "pkg/runtime.Service.Stop"},
		{"variable", "pkg/kubelet.Kubelet.kill"},
		{"promoted", "pkg/kubelet.Kubelet.kill"},
		{"foreign", "io.Closer.Close"},
		{"removes", "os.RemoveAll"},
	} {
		line := 1 + slices.IndexFunc(lines, func(l string) bool {
			return strings.Contains(l, " "+want.caller+"(") || strings.Contains(l, " "+want.caller+"[") || strings.Contains(l, " "+want.caller+" =")
		})
		if want.caller == "inLiteral" {
			line++
		}
		assert.Contains(t, got, fmt.Sprintf("pkg/kubelet/fake.go:%d: pkg/kubelet.%s uses %s, and the table does not know it.", line, want.caller, want.callee))
	}
	assert.Len(t, errs, 13, got)
}

func TestATreeThatDoesNotCompileIsNoAnswer(t *testing.T) {
	files := stopTree()
	files["pkg/kubelet/broken.go"] = "package kubelet\n\nfunc broken() { missing() }\n"
	_, err := graphOf(t, files)
	require.ErrorContains(t, err, "cannot be type-checked")
	require.ErrorContains(t, err, "undefined: missing")
}

func TestStopPathsAreCheckedAndWrittenForTheGuardedTree(t *testing.T) {
	ctx := context.Background()
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	var out bytes.Buffer
	require.ErrorContains(t, f.CheckStopPaths(ctx, u, "", &out), "start with the table of the minor before")

	f.write("patches/v1.36/stop-paths.yaml", `
areas:
- title: Everything
  about: There is not | much.
  stops:
  - {function: pkg/kubelet.SyncPod, does: syncs a|pod}
  paths:
  - {caller: cmd/kubelet.main, calls: [pkg/kubelet.SyncPod], hooks: [{call: Keep, in: pkg/kubelet.SyncPod}]}
`)
	require.NoError(t, f.CheckStopPaths(ctx, u, "", &out))
	assert.Contains(t, out.String(), "1 stops, 1 uses on the way to them: 1 behind a hook, 0 open, 0 need none or are decided by their callers\n")

	// The same tree and table in another checkout.
	var again bytes.Buffer
	require.NoError(t, f.other().CheckStopPaths(ctx, u, "", &again))
	assert.NotContains(t, again.String(), "Checking the stop paths")
	assert.Contains(t, again.String(), "1 stops, 1 uses on the way to them")

	// Another tree than the prepared one, with a caller more.
	other := t.TempDir()
	require.NoError(t, copyTree(f.treeDir(Guarded), other))
	more := "package kubelet\n\nfunc more() bool { return SyncPod(\"b\") }\n"
	require.NoError(t, os.WriteFile(filepath.Join(other, "pkg", "kubelet", "more.go"), []byte(more), 0o644))
	require.ErrorContains(t, f.CheckStopPaths(ctx, u, other, &out), "pkg/kubelet/more.go:3: pkg/kubelet.more uses pkg/kubelet.SyncPod, and the table does not know it.")
	require.NoError(t, f.CheckStopPaths(ctx, u, "", &out))

	require.NoError(t, f.WriteStopPaths(u, &out))
	page := f.read("docs/stop-paths.md")
	assert.Contains(t, page, "\n| Everything | 1 | 1 | There is not \\| much. |\n")
	assert.NotContains(t, page, "Open")
	assert.Equal(t, `area	kind	function	calls	what a stop does, or the hook or reason of a caller
Everything	stop	kubelet.SyncPod		syncs a|pod
Everything	caller	kubelet.main	kubelet.SyncPod	guard.Keep in kubelet.SyncPod.
`, f.read("docs/stop-paths.tsv"))

	f.write("patches/v1.36/stop-paths.yaml", strings.NewReplacer("hooks: [{call: Keep, in: pkg/kubelet.SyncPod}]", "open: nobody asks", "{caller", "{callers: true, caller").Replace(f.read("patches/v1.36/stop-paths.yaml")))
	out.Reset()
	require.NoError(t, f.CheckStopPaths(ctx, u, "", &out))
	assert.Contains(t, out.String(), "OPEN: cmd/kubelet.main: nobody asks\n")
	require.NoError(t, f.WriteStopPaths(u, &out))
	assert.Contains(t, f.read("docs/stop-paths.md"), "**Open: 1 lines of the table have no hook yet and need one.**")
	assert.Contains(t, f.read("docs/stop-paths.tsv"), "\tOPEN: Nobody asks. Its callers decide.\n")
}

func TestATableOfStopPathsIsComplete(t *testing.T) {
	const path = "areas: [{title: a, stops: [{function: f, does: stops}], paths: [{caller: c, calls: [f], reason: none}]}]\n"
	for name, test := range map[string]struct{ old, new, want string }{
		"no title":         {"title: a, ", "", "an area has no title"},
		"no does":          {", does: stops", "", `stop "f": function and does are both required`},
		"no calls":         {"calls: [f], ", "", `path of "c": caller and calls are both required`},
		"no verdict":       {", reason: none", "", "c: give hooks, a reason, callers or open"},
		"hook without":     {"reason: none", "hooks: [{in: c}]", "c: a hook without call"},
		"a stop twice":     {"{function: f, does: stops}", "{function: f, does: stops}, {function: f, does: stops}", "f is listed twice"},
		"a call twice":     {"calls: [f]", "calls: [f, f]", "c: its call of f is listed twice"},
		"an unknown field": {"reason: none", "reasons: none", `unknown field "reasons"`},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, path, test.old)
			file := filepath.Join(t.TempDir(), "stop-paths.yaml")
			require.NoError(t, os.WriteFile(file, []byte(strings.Replace(path, test.old, test.new, 1)), 0o644))
			_, err := LoadStopPaths(file)
			require.ErrorContains(t, err, test.want)
		})
	}
	file := filepath.Join(t.TempDir(), "stop-paths.yaml")
	require.NoError(t, os.WriteFile(file, []byte(path), 0o644))
	_, err := LoadStopPaths(file)
	require.NoError(t, err)
}
