package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// guardTests are the in-tree tests of the hooks, by name.
	guardTests = "^TestGuard"
	// proveTimeout ends the tests of one package without a hook. All of them
	// take a few seconds; some wait for ever for what the missing hook does.
	proveTimeout = 2 * time.Minute
)

// Hook is one place where the patches change what the kubelet does: a hunk that
// is more than an import.
type Hook struct {
	// Patch is the file name of the patch.
	Patch string
	// File is the slash-separated path in the Kubernetes tree.
	File string
	// Function is what the hunk is in; a method goes by its name.
	Function string
	// Calls are the functions and causes of the guard that the hunk names, in sequence.
	Calls []string

	// before are the lines of the hunk upstream, after are those with the hook.
	before, after []string
	// importsOnly: nothing but imports changes. That is no hook, but has to go with those
	// that need it.
	importsOnly bool
}

// String names the hook in a line of a table.
func (h Hook) String() string {
	what := strings.Join(h.Calls, " ")
	if what == "" {
		what = "(" + strings.TrimSuffix(h.Patch, ".patch") + ")"
	}
	return h.File + " " + h.Function + ": " + what
}

// Proof has the tests that fail without a hook.
type Proof struct {
	Hook Hook
	// Noticed are the tests that fail without the hook, sorted, without subtests.
	Noticed []string
	// Problem is why there is no result: the tree does not compile without the
	// hook, for example.
	Problem string
}

// Proved reports whether at least one test fails without the hook.
func (p Proof) Proved() bool { return p.Problem == "" && len(p.Noticed) > 0 }

// result is the outcome in a few words.
func (p Proof) result() string {
	switch {
	case p.Problem != "":
		return "NO RESULT: " + p.Problem
	case len(p.Noticed) == 0:
		return "NO test fails without it"
	}
	return fmt.Sprintf("%d tests fail without it", len(p.Noticed))
}

var (
	declaration = regexp.MustCompile(`^(?:(?:func|var|const|type) )?(?:\([^)]*\) )?([A-Za-z0-9_]*)`)
	guardName   = regexp.MustCompile(`\bguard\.([A-Z]\w*)`)
	guardImport = regexp.MustCompile(`(?m)^\s*"k8s\.io/kubernetes/pkg/kubelet/guard"$`)
	importLine  = regexp.MustCompile(`^\s*(?:\w+ )?"[^"]+"$`)
)

// Hooks returns the hooks of the patches, in the order of the series.
func (s Series) Hooks() []Hook {
	return slices.DeleteFunc(s.changes(), func(h Hook) bool { return h.importsOnly })
}

// changes returns all hunks of the patches, in the order of the series.
func (s Series) changes() (all []Hook) {
	for _, p := range s.Patches {
		all = append(all, p.changes...)
	}
	return all
}

// parseHook finds out what a hunk changes, and in which function.
func parseHook(patch, file string, hunk *gitdiff.TextFragment) Hook {
	c := Hook{Patch: patch, File: file, importsOnly: true, Function: functionIn(hunk.Comment)}
	for _, line := range hunk.Lines {
		text := strings.TrimSuffix(line.Line, "\n")
		switch line.Op {
		case gitdiff.OpAdd:
			c.after = append(c.after, text)
			for _, m := range guardName.FindAllStringSubmatch(text, -1) {
				c.Calls = append(c.Calls, m[1])
			}
			c.importsOnly = c.importsOnly && (strings.TrimSpace(text) == "" || importLine.MatchString(text))
		case gitdiff.OpDelete:
			c.before = append(c.before, text)
			c.importsOnly = false
		case gitdiff.OpContext:
			if c.importsOnly && strings.HasPrefix(text, "func ") {
				c.Function = functionIn(text)
			}
			c.before = append(c.before, text)
			c.after = append(c.after, text)
		}
	}
	return c
}

// functionIn returns the name that a line of Go declares. Git names the function above the
// hunk; the one that the change is in may start inside it.
func functionIn(line string) string {
	return declaration.FindStringSubmatch(line)[1]
}

// Without returns the content of the hook's file as upstream has it at this
// place. Other hooks stay. It is an error when the place cannot be found, or is
// ambiguous, because a later patch changes the same lines.
//
// The hunk is removed as a whole, instead of replacing each call of the guard
// by the result of a kubelet without one: what is then compiled is upstream's own
// code, for any shape of hook. An import that nothing uses any more is kept in use
// by a declaration at the end, since it is in a hunk of its own.
func (h Hook) Without(content []byte) ([]byte, error) {
	text := "\n" + string(content)
	// A neighbour may have changed the context: do with as little less of it as needed,
	// above the change or below. A line may be context on either side: the blank one of
	// an added paragraph is.
	above, below := common(h.before, h.after, false), common(h.before, h.after, true)
	for dropped := 0; dropped <= above+below; dropped++ {
		for top := max(0, dropped-below); top <= min(above, dropped); top++ {
			bottom := dropped - top
			if top+bottom > min(len(h.before), len(h.after)) {
				continue
			}
			before, after := h.before[top:len(h.before)-bottom], h.after[top:len(h.after)-bottom]
			block := "\n" + linesOf(after)
			switch n := strings.Count(text, block); {
			case n == 1:
				out := strings.Replace(text, block, "\n"+linesOf(before), 1)[1:]
				if guardImport.MatchString(out) && !guardName.MatchString(out) {
					out += "\nvar _ = guard.Install\n"
				}
				return []byte(out), nil
			case n > 1:
				return nil, fmt.Errorf("%s: %s: the lines of the hook in %s are there %d times; give its patch more context", h.Patch, h.File, h.Function, n)
			}
		}
	}
	return nil, fmt.Errorf("%s: the hook in %s of %s is not in the guarded tree; a later patch changes it", h.Patch, h.Function, h.File)
}

// neighbours returns the changes of the same patch in the same file, of the same function
// only or all of them.
func (h Hook) neighbours(changes []Hook, sameFunction bool) []Hook {
	var found []Hook
	for _, o := range changes {
		if o.Patch == h.Patch && o.File == h.File && (!sameFunction || o.Function == h.Function && !o.importsOnly) {
			found = append(found, o)
		}
	}
	return found
}

// hooksComeOut returns an error for each hook of the series that cannot be removed from the
// files of a tree with all of them.
func (s Series) hooksComeOut(content func(name string) ([]byte, error)) error {
	var errs []error
	for _, h := range s.Hooks() {
		data, err := content(h.File)
		if err == nil {
			_, err = h.Without(data)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// common counts the lines with which both start, or end.
func common(a, b []string, atEnd bool) int {
	n := 0
	for n < min(len(a), len(b)) {
		i, j := n, n
		if atEnd {
			i, j = len(a)-1-n, len(b)-1-n
		}
		if a[i] != b[j] {
			break
		}
		n++
	}
	return n
}

func linesOf(text []string) string {
	if len(text) == 0 {
		return ""
	}
	return strings.Join(text, "\n") + "\n"
}

// ProveHooks removes the hooks from the guarded tree, one at a time, and runs the
// in-tree hook tests: at least one has to fail. The go command gets the
// changed file as an overlay, so that everything else comes from the build
// cache. Patches may be edited meanwhile: what is proved is the tree as it was at
// the start. only, when not nil, selects hooks by what String
// returns. Progress is written to out.
func (r Repo) ProveHooks(ctx context.Context, u Upstream, only *regexp.Regexp, out io.Writer) ([]Proof, error) {
	scratch := r.path("_output", "prove", u.Version)
	src, dir, release, err := r.holdTree(ctx, u, Guarded, out)
	if err != nil {
		return nil, err
	}
	defer release()
	series := src.series
	changes, hooks := series.changes(), series.Hooks()
	if only != nil {
		hooks = slices.DeleteFunc(hooks, func(h Hook) bool { return !only.MatchString(h.String()) })
	}
	if len(hooks) == 0 {
		return nil, fmt.Errorf("no hook of %s matches", r.rel(series.Dir))
	}
	if err := series.hooksComeOut(func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	}); err != nil {
		return nil, err
	}
	tested := src.hookTestPackages()
	if len(tested) == 0 {
		return nil, fmt.Errorf("%s has no in-tree tests in patches", u.Version)
	}
	log, err := r.testLog("prove.jsonl")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := prover{runner: testRunner{dir: dir, log: log, kind: testKind{tags: buildTags}}, scratch: scratch, tested: tested, green: map[string]bool{}}
	var proofs []Proof
	for i, h := range hooks {
		start := time.Now()
		// Hunks that share a variable only go together, and those that share a function or
		// an import only with the rest of their file.
		var proof Proof
		for _, together := range [][]Hook{{h}, h.neighbours(changes, true), h.neighbours(changes, false)} {
			if proof, err = p.prove(ctx, h, together); err != nil {
				return nil, err
			}
			if proof.Problem == "" {
				break
			}
		}
		proofs = append(proofs, proof)
		fmt.Fprintf(out, "[%d/%d] %s: %s (%s)\n", i+1, len(hooks), h, proof.result(), time.Since(start).Round(time.Second))
	}
	return proofs, nil
}

// hookTestPackages returns the patterns of the packages that the in-tree tests are in,
// sorted.
func (s source) hookTestPackages() []string {
	var packages []string
	for name := range s.added {
		if strings.HasSuffix(name, "_test.go") && !inGuard(name) {
			packages = append(packages, "./"+path.Dir(name))
		}
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

type prover struct {
	runner  testRunner
	scratch string
	// tested are the packages with hook tests.
	tested []string
	// green are those whose tests pass with every hook in place.
	green map[string]bool
}

// check returns an error when hook tests of the package fail although every hook
// is in place: they would prove nothing.
func (p prover) check(ctx context.Context, pkg string) error {
	if p.green[pkg] {
		return nil
	}
	run, err := p.runner.run(ctx, []string{pkg}, []string{"-run", guardTests, "-timeout", proveTimeout.String()}, io.Discard)
	if err != nil {
		return err
	}
	if failures := run.failures(); len(failures) > 0 {
		return fmt.Errorf("these hook tests fail although every hook is in place, so they prove nothing; see guard-build test: %v", failures)
	}
	p.green[pkg] = true
	return nil
}

// order returns the packages with tests in the order in which they run for a hook in
// own: own first, and the one that takes longest to build last.
func (p prover) order(own string) []string {
	rank := map[string]int{"./pkg/kubelet": 1}
	rank[own] = -1
	packages := slices.Clone(p.tested)
	slices.SortStableFunc(packages, func(a, b string) int { return rank[a] - rank[b] })
	return packages
}

// prove runs the tests without the hunks in out, which are h and what only goes
// together with it, package by package, until one fails.
func (p prover) prove(ctx context.Context, h Hook, out []Hook) (Proof, error) {
	proof := Proof{Hook: h}
	original := filepath.Join(p.runner.dir, filepath.FromSlash(h.File))
	content, err := os.ReadFile(original)
	if err != nil {
		return proof, err
	}
	changed := content
	for _, o := range out {
		if changed, err = o.Without(changed); err != nil {
			return proof, err
		}
	}
	overlay, err := writeOverlay(p.scratch, original, changed)
	if err != nil {
		return proof, err
	}
	flags := []string{"-overlay", overlay, "-run", guardTests, "-timeout", proveTimeout.String()}
	for _, pkg := range p.order("./" + path.Dir(h.File)) {
		if err := p.check(ctx, pkg); err != nil {
			return proof, err
		}
		run, err := p.runner.run(ctx, []string{pkg}, flags, io.Discard)
		if err != nil {
			return proof, err
		}
		proof.take(run)
		if proof.Problem != "" || len(proof.Noticed) > 0 {
			break
		}
	}
	return proof, nil
}

// take reads the result of a test run.
func (p *Proof) take(run testRun) {
	for _, id := range run.failures() {
		if id.Test != "" {
			p.Noticed = append(p.Noticed, path.Base(id.Package)+"."+id.top())
		} else if text := run.output(id); strings.Contains(text, "[build failed]") {
			// A panic ends the package, too, but it is one test that panics.
			p.Problem = tail(text, 3)
		}
	}
	slices.Sort(p.Noticed)
	p.Noticed = slices.Compact(p.Noticed)
}

// PrintProofs writes which tests fail without each hook, and which tests cover each
// cause. It returns an error that counts the hooks and causes without a
// test. Causes are not counted when only some of the hooks were proved.
func (r Repo) PrintProofs(proofs []Proof, all bool, out io.Writer) error {
	causes := guard.Causes()
	byCause := map[guard.Cause][]string{}
	unproved := 0
	for _, p := range proofs {
		fmt.Fprintf(out, "\n%s\n    %s\n", p.Hook, p.result())
		for _, name := range p.Noticed {
			fmt.Fprintf(out, "    %s\n", name)
		}
		if !p.Proved() {
			unproved++
			continue
		}
		for _, call := range p.Hook.Calls {
			for _, cause := range append([]guard.Cause{guard.Cause(call)}, guard.HookCauses[call]...) {
				byCause[cause] = append(byCause[cause], p.Noticed...)
			}
		}
	}
	uncovered := 0
	fmt.Fprintf(out, "\nTests that fail without a hook of the cause:\n")
	for _, cause := range causes {
		slices.Sort(byCause[cause])
		tests := slices.Compact(byCause[cause])
		if len(tests) == 0 {
			uncovered++
		}
		fmt.Fprintf(out, "    %-23s %d  %s\n", cause, len(tests), strings.Join(tests, " "))
	}
	fmt.Fprintf(out, "\n%d hooks, %d noticed by a test when missing; %d causes, %d with such a test\n",
		len(proofs), len(proofs)-unproved, len(causes), len(causes)-uncovered)
	if !all {
		uncovered = 0
	}
	if unproved > 0 || uncovered > 0 {
		return fmt.Errorf("%d hooks and %d causes have no test that fails without them; add one to patches/tests", unproved, uncovered)
	}
	return nil
}
