package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"sigs.k8s.io/yaml"
)

// stopPathsMain is the program whose stop paths are checked.
const stopPathsMain = "./cmd/kubelet"

// StopPaths is the table of all ways in which the kubelet stops something that a pod
// lives on, in stop-paths.yaml of a patch directory. People write it, and CheckStopPaths
// compares it with the guarded tree.
//
// Functions are named by their package's path, without the module's for those of the
// tree, and the function or the type and its method: pkg/kubelet.Kubelet.SyncPod.
type StopPaths struct {
	// Interfaces are interfaces of which every method is either a stop or known to be
	// harmless, so that a method that upstream adds is checked.
	Interfaces []StopInterface `json:"interfaces,omitempty"`
	// OtherHooks are those that refuse something other than a stop. Every other hook that may
	// refuse is in a path.
	OtherHooks []OtherHook `json:"otherHooks,omitempty"`
	// Areas group stops with the paths to them.
	Areas []StopArea `json:"areas"`
}

// OtherHook is a call of the guard that is in front of no stop.
type OtherHook struct {
	// Call is the function of the guard package, In the function that contains the call.
	Call string `json:"call"`
	In   string `json:"in"`
	// Refuses is what it refuses.
	Refuses string `json:"refuses"`
}

// StopInterface is an interface all of whose methods the table knows.
type StopInterface struct {
	// Name is the interface, named like a function.
	Name string `json:"name"`
	// Harmless are the methods that stop nothing.
	Harmless []string `json:"harmless"`
}

// StopArea is one section of the table.
type StopArea struct {
	// Title is the heading, About the text below it.
	Title string `json:"title"`
	About string `json:"about,omitempty"`
	// Stops are the functions that do it.
	Stops []Stop `json:"stops"`
	// Paths are the callers of the stops, and the callers of those, up to a hook or to
	// where none is needed.
	Paths []StopPath `json:"paths"`
}

// Stop is a function that removes something from pods. For a method of an interface
// everything that implements it is meant, too.
type Stop struct {
	// Function is its name.
	Function string `json:"function"`
	// Does is what it does, in a few words.
	Does string `json:"does"`
	// Within are the prefixes of names of the callers that count; empty means all.
	Within []string `json:"within,omitempty"`
	// Unused is set when nothing calls it today.
	Unused bool `json:"unused,omitempty"`
}

// StopPath explains why the uses of one or more functions in another one cannot
// stop what a protected pod lives on. Of Hooks, Reason, Callers and Open there is at
// least one.
type StopPath struct {
	// Caller is the function that contains the calls.
	Caller string `json:"caller"`
	// Calls are stops or callers in paths with Callers.
	Calls []string `json:"calls"`
	// Hooks are the calls of the guard that come first.
	Hooks []StopHook `json:"hooks,omitempty"`
	// Reason is why no hook is needed, or a remark about one.
	Reason string `json:"reason,omitempty"`
	// Callers is set when the callers of Caller are in the table as well.
	Callers bool `json:"callers,omitempty"`
	// Open is what is lost here because a hook is missing.
	Open string `json:"open,omitempty"`
}

// StopHook is a call of the guard.
type StopHook struct {
	// Call is the function of the guard package.
	Call string `json:"call"`
	// In is the function that contains the call: the caller, which is the default, one
	// that the caller reaches, or one that reaches the caller.
	In string `json:"in,omitempty"`
	// Via is what lies between the two where no call leads from one to the other: a
	// channel, or a field with a function.
	Via string `json:"via,omitempty"`
}

// in returns the function that contains the hook.
func (h StopHook) in(p StopPath) string {
	if h.In == "" {
		return p.Caller
	}
	return h.In
}

// LoadStopPaths reads a stop-paths.yaml and checks what can be checked without a tree.
func LoadStopPaths(file string) (StopPaths, error) {
	var s StopPaths
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w; start with the table of the minor before", err)
	}
	if err != nil {
		return s, err
	}
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(file+": "+format, args...))
	}
	stops := map[string]bool{}
	edges := map[stopEdge]bool{}
	for _, area := range s.Areas {
		if area.Title == "" {
			fail("an area has no title")
		}
		for _, stop := range area.Stops {
			if stop.Function == "" || stop.Does == "" {
				fail("area %q: stop %q: function and does are both required", area.Title, stop.Function)
			}
			if stops[stop.Function] {
				fail("%s is listed twice", stop.Function)
			}
			stops[stop.Function] = true
		}
		for _, path := range area.Paths {
			if path.Caller == "" || len(path.Calls) == 0 {
				fail("area %q: path of %q: caller and calls are both required", area.Title, path.Caller)
			}
			if len(path.Hooks) == 0 && path.Reason == "" && !path.Callers && path.Open == "" {
				fail("%s: give hooks, a reason, callers or open", path.Caller)
			}
			for _, hook := range path.Hooks {
				if hook.Call == "" {
					fail("%s: a hook without call", path.Caller)
				}
			}
			for _, call := range path.Calls {
				edge := stopEdge{path.Caller, call}
				if edges[edge] {
					fail("%s: its call of %s is listed twice", path.Caller, call)
				}
				edges[edge] = true
			}
		}
	}
	return s, errors.Join(errs...)
}

// stopEdge is one use of a function, named as in the table.
type stopEdge struct{ caller, callee string }

// stopPathsFile is the table of an upstream version.
func (r Repo) stopPathsFile(u Upstream) string {
	return filepath.Join(r.patchDir(u), "stop-paths.yaml")
}

// CheckStopPaths compares stop-paths.yaml with the guarded tree, or with the tree in dir
// when that is not empty, such as the edit tree. It returns all differences together: callers
// that the table does not know, with an entry to complete, entries for what is gone, and
// hooks that are not where the table has them. Progress and the result are written to out.
func (r Repo) CheckStopPaths(ctx context.Context, u Upstream, dir string, out io.Writer) error {
	table, err := LoadStopPaths(r.stopPathsFile(u))
	if err != nil {
		return err
	}
	if dir != "" {
		return r.compareStopPaths(ctx, u, table, dir, out, out)
	}
	src, tree, release, err := r.holdTree(ctx, u, Guarded, out)
	if err != nil {
		return err
	}
	defer release()
	if r.Cache == "" {
		return r.compareStopPaths(ctx, u, table, tree, out, out)
	}
	// The result follows from this program, the tree and the table. A failure is not kept.
	key, err := r.stopPathsKey(u, src)
	if err != nil {
		return err
	}
	kept, release, err := r.cache().hold(ctx, "stop-paths", key, out, func(dir string) error {
		var result bytes.Buffer
		if err := r.compareStopPaths(ctx, u, table, tree, &result, out); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "result"), result.Bytes(), 0o644)
	})
	if err != nil {
		return err
	}
	defer release()
	result, err := os.ReadFile(filepath.Join(kept, "result"))
	if err != nil {
		return err
	}
	_, err = out.Write(result)
	return err
}

// stopPathsKey identifies all that a comparison depends on.
func (r Repo) stopPathsKey(u Upstream, src source) (string, error) {
	h := sha256.New()
	program, err := os.Executable()
	if err != nil {
		return "", err
	}
	for _, file := range []string{program, r.stopPathsFile(u)} {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		hashFile(h, filepath.Base(file), data)
	}
	fmt.Fprintln(h, src.key())
	return fmt.Sprintf("%x", h.Sum(nil))[:32], nil
}

// compareStopPaths is CheckStopPaths for the tree in dir. The result is written to result.
func (r Repo) compareStopPaths(ctx context.Context, u Upstream, table StopPaths, dir string, result, out io.Writer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Checking the stop paths of %s in %s\n", stopPathsMain, r.rel(dir))
	graph, err := loadCallGraph(ctx, dir, u.Module, stopPathsMain, buildTags)
	if err != nil {
		return err
	}
	counts, errs := table.check(graph)
	if len(errs) > 0 {
		return fmt.Errorf("%s does not agree with %s:\n%w", r.rel(r.stopPathsFile(u)), r.rel(dir), errors.Join(errs...))
	}
	for _, area := range table.Areas {
		for _, path := range area.Paths {
			if path.Open != "" {
				fmt.Fprintf(result, "OPEN: %s: %s\n", path.Caller, path.Open)
			}
		}
	}
	fmt.Fprintln(result, counts)
	return nil
}

// stopCounts is the size of a table.
type stopCounts struct{ stops, edges, hooked, open int }

// String is the last line of a check.
func (c stopCounts) String() string {
	return fmt.Sprintf("%d stops, %d uses on the way to them: %d behind a hook, %d open, %d need none or are decided by their callers",
		c.stops, c.edges, c.hooked, c.open, c.edges-c.hooked-c.open)
}

// check compares the table with a tree.
func (s StopPaths) check(g *callGraph) (stopCounts, []error) {
	var (
		counts stopCounts
		errs   []error
	)
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	// The targets: the stops, and the callers whose callers count.
	type target struct {
		name   string
		within []string
	}
	var queue []target
	isStop := map[string]bool{}
	stops := map[string]bool{}
	known := map[stopEdge]StopPath{}
	for _, area := range s.Areas {
		for _, stop := range area.Stops {
			counts.stops++
			stops[stop.Function] = true
			if g.functions[stop.Function] == nil && !stop.Unused {
				fail("stop %s: the tree has no such function, or nothing uses it; set unused: true if that is meant", stop.Function)
			}
			for name := range g.alike(stop.Function) {
				isStop[name] = true
			}
			queue = append(queue, target{stop.Function, stop.Within})
		}
		for _, path := range area.Paths {
			for _, call := range path.Calls {
				known[stopEdge{path.Caller, call}] = path
			}
		}
	}
	usedBy := g.callers()
	seen := map[string]bool{}
	visited := map[stopEdge]bool{}
	for ; len(queue) > 0; queue = queue[1:] {
		t := queue[0]
		if seen[t.name] {
			continue
		}
		seen[t.name] = true
		alike := g.alike(t.name)
		// By caller: one that uses an interface and what implements it is one edge.
		uses := map[string][]string{}
		for name := range alike {
			for _, caller := range usedBy[name] {
				// What implements a stop is covered by the callers of the stop.
				if alike[caller] || isStop[caller] || !within(caller, t.within) {
					continue
				}
				for _, pos := range g.functions[caller].uses[name] {
					uses[caller] = append(uses[caller], g.place(pos))
				}
			}
		}
		callers := make([]string, 0, len(uses))
		for caller := range uses {
			callers = append(callers, caller)
		}
		sort.Strings(callers)
		for _, caller := range callers {
			edge := stopEdge{caller, t.name}
			path, ok := known[edge]
			if !ok {
				sort.Strings(uses[caller])
				fail("%s: %s uses %s, and the table does not know it. Add the hook that comes first, or why none is needed:\n"+
					"  - caller: %s\n    calls: [%s]", strings.Join(uses[caller], ", "), caller, t.name, caller, t.name)
				continue
			}
			visited[edge] = true
			counts.edges++
			switch {
			case path.Open != "":
				counts.open++
			case len(path.Hooks) > 0:
				counts.hooked++
			}
			if path.Callers {
				queue = append(queue, target{name: caller})
			}
		}
	}
	for _, area := range s.Areas {
		for _, path := range area.Paths {
			for _, call := range path.Calls {
				if visited[stopEdge{path.Caller, call}] {
					continue
				}
				switch {
				case g.functions[path.Caller] == nil || len(g.functions[path.Caller].uses) == 0:
					fail("%s: the tree has no such function any more; remove it from the table", path.Caller)
				case !seen[call]:
					fail("%s: %s is neither a stop nor a caller whose callers count (callers: true)", path.Caller, call)
				default:
					fail("%s: %s does not use %s any more; remove that from the table", g.place(g.functions[path.Caller].pos), path.Caller, call)
				}
			}
			for _, hook := range path.Hooks {
				if err := hook.check(g, path); err != nil {
					errs = append(errs, err)
				}
			}
		}
	}
	errs = append(errs, s.unnamedHooks(g)...)
	for _, iface := range s.Interfaces {
		errs = append(errs, iface.check(g, stops)...)
	}
	return counts, errs
}

// check returns what is wrong with a hook of a path.
func (h StopHook) check(g *callGraph, p StopPath) error {
	in := h.in(p)
	f := g.functions[in]
	if f == nil {
		return fmt.Errorf("%s: hook guard.%s: the tree has no function %s", p.Caller, h.Call, in)
	}
	hooked, ok := f.uses[GuardDir+"."+h.Call]
	if !ok {
		return fmt.Errorf("%s: %s does not call guard.%s, which the table names as the hook of %s", g.place(f.pos), in, h.Call, p.Caller)
	}
	if in == p.Caller {
		for _, call := range p.Calls {
			for name := range g.alike(call) {
				if at := f.uses[name]; len(at) > 0 && hooked[0] > at[0] {
					return fmt.Errorf("%s: %s uses %s before it calls guard.%s", g.place(at[0]), in, call, h.Call)
				}
			}
		}
		return nil
	}
	if h.Via == "" && !g.reaches(p.Caller, in) && !g.reaches(in, p.Caller) {
		return fmt.Errorf("%s: %s with the hook guard.%s is not on the way of %s; if something other than calls connects them, name it in via", g.place(f.pos), in, h.Call, p.Caller)
	}
	return nil
}

// refusals are how the names of the guard's functions start that may refuse.
var refusals = []string{"CheckKill", "Hold", "Refuse", "FilterStoppable"}

// unnamedHooks returns the hooks of the tree that are in no line of the table.
func (s StopPaths) unnamedHooks(g *callGraph) []error {
	named := map[stopEdge]bool{}
	for _, area := range s.Areas {
		for _, path := range area.Paths {
			for _, hook := range path.Hooks {
				named[stopEdge{hook.in(path), hook.Call}] = true
			}
		}
	}
	var errs []error
	for _, hook := range s.OtherHooks {
		named[stopEdge{hook.In, hook.Call}] = true
		if f := g.functions[hook.In]; f == nil || len(f.uses[GuardDir+"."+hook.Call]) == 0 {
			errs = append(errs, fmt.Errorf("%s does not call guard.%s any more; remove it from otherHooks", hook.In, hook.Call))
		}
	}
	for _, f := range g.functions {
		if strings.HasPrefix(f.Name, GuardDir+".") {
			continue
		}
		for used, places := range f.uses {
			call, ok := strings.CutPrefix(used, GuardDir+".")
			if ok && slices.ContainsFunc(refusals, func(p string) bool { return strings.HasPrefix(call, p) }) && !named[stopEdge{f.Name, call}] {
				errs = append(errs, fmt.Errorf("%s: the hook guard.%s in %s is in no line of the table; name it in the path that it is in front of, or among otherHooks", g.place(places[0]), call, f.Name))
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

// check returns the methods of an interface that the table does not know.
func (i StopInterface) check(g *callGraph, stops map[string]bool) []error {
	methods := g.methods(i.Name)
	if len(methods) == 0 {
		return []error{fmt.Errorf("interface %s: the program has no such interface", i.Name)}
	}
	var errs []error
	found := map[string]bool{}
	for _, method := range methods {
		name := method[strings.LastIndex(method, ".")+1:]
		found[name] = true
		switch harmless := slices.Contains(i.Harmless, name); {
		case stops[method] && harmless:
			errs = append(errs, fmt.Errorf("interface %s: %s is both a stop and harmless", i.Name, name))
		case !stops[method] && !harmless:
			errs = append(errs, fmt.Errorf("interface %s: the table does not know the method %s; list %s among the stops, or %s as harmless", i.Name, name, method, name))
		}
	}
	for _, name := range i.Harmless {
		if !found[name] {
			errs = append(errs, fmt.Errorf("interface %s: it has no method %s any more", i.Name, name))
		}
	}
	return errs
}

// within reports whether a name has one of the prefixes; none means yes.
func within(name string, prefixes []string) bool {
	return len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
