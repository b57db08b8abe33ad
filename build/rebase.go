package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
)

// ConflictError reports a patch that does not carry over to another upstream
// version by itself.
type ConflictError struct {
	// Patch is the file name of the patch.
	Patch string
	// Tree is the work tree in which the conflict waits to be resolved.
	Tree string
	// Conflicts are git's messages about the files, which have its markers.
	Conflicts []string
}

// Error names every file.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s conflicts:\n%s\nResolve it in %s (edit, git add, git rebase --continue), then run the same command with --finish",
		e.Patch, indent(strings.Join(e.Conflicts, "\n")), e.Tree)
}

// rebaseTarget pins the version that a series is carried over to.
func rebaseTarget(ctx context.Context, from Upstream, version string) (u Upstream, archive string, err error) {
	if !semver.IsValid(version) || semver.Canonical(version) != version {
		return u, "", fmt.Errorf("--to: %q is not a full version such as v1.36.3", version)
	}
	got, err := downloadModule(ctx, from.Module, version)
	if err != nil {
		return u, "", fmt.Errorf("--to: %w", err)
	}
	return Upstream{
		Module: from.Module, Version: version, Sum: got.Sum, GoModSum: got.GoModSum,
		StagingVersion: "v0" + strings.TrimPrefix(version, "v1"),
		file:           "upstream.yaml",
	}, got.Dir, nil
}

// Rebase carries the guard package, the series and the in-tree tests of from over to
// another upstream version, with git rebase. It works in _output/rebase/<version> and leaves
// the patches of this repository alone until FinishRebase. A patch that does not merge is
// reported as a *ConflictError, and what merges is compiled.
func (r Repo) Rebase(ctx context.Context, from Upstream, version string, force bool, out io.Writer) error {
	to, archive, err := rebaseTarget(ctx, from, version)
	if err != nil {
		return err
	}
	src, err := r.source(from, Guarded)
	if err != nil {
		return err
	}
	if len(src.series.Patches) == 0 {
		return fmt.Errorf("%s has no patches to rebase", r.rel(src.series.Dir))
	}
	tree := r.workTree(to, "rebase/"+version, out)
	if tree.exists() && !force {
		return fmt.Errorf("%s holds a rebase already; finish it with --finish, or discard it with --force", r.rel(tree.Dir()))
	}
	modules, err := r.resolveModules(ctx, to, archive, out)
	if err != nil {
		return err
	}
	onto, err := r.commit(ctx, source{upstream: to, tree: Stock, modules: modules}, out)
	if err != nil {
		return err
	}
	commit, err := r.commit(ctx, src, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Rebasing %d patches in %s\n", len(src.series.Patches), r.rel(tree.Dir()))
	if err := tree.create(ctx, commit); err != nil {
		return err
	}
	if _, err := r.git().run(ctx, "config", tree.fromVersion(), from.Version); err != nil {
		return err
	}
	base, err := tree.git.base(ctx, commit)
	if err != nil {
		return err
	}
	if text, err := tree.git.raw(ctx, nil, "rebase", "-q", "--onto", onto, base); err != nil {
		return tree.conflict(ctx, string(text), err)
	}
	if err := tree.compiles(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "All %d patches apply to %s and compile. Review them in %s, then run the same command with --finish.\n", len(src.series.Patches), version, r.rel(tree.Dir()))
	return nil
}

// fromVersion is the setting of a rebase that has the version it started from.
func (e EditTree) fromVersion() string { return "branch." + e.name + ".guardFrom" }

// conflict describes what stopped a rebase from its output.
func (e EditTree) conflict(ctx context.Context, output string, err error) error {
	conflict := &ConflictError{Tree: e.repo.rel(e.Dir())}
	for line := range strings.Lines(output) {
		if strings.HasPrefix(line, "CONFLICT (") {
			conflict.Conflicts = append(conflict.Conflicts, strings.TrimSpace(line))
		}
	}
	subject, noPatch := e.git.run(ctx, "show", "-s", "--format=%s", "REBASE_HEAD")
	if noPatch != nil || len(conflict.Conflicts) == 0 {
		return errors.Join(err, noPatch)
	}
	conflict.Patch = patchName(subject)
	return conflict
}

// compiles returns an error when a package that the series touches does not compile, or its
// tests do not: a change of upstream with which nothing conflicts shows only there.
func (e EditTree) compiles(ctx context.Context) error {
	base, err := e.git.base(ctx, "HEAD")
	if err != nil {
		return err
	}
	files, err := e.git.lines(ctx, "diff", "--name-only", "--diff-filter=d", base, "HEAD", "--", "*.go", ":(exclude)**/testdata/**")
	if err != nil {
		return err
	}
	packages := []string{Kubelet.Package}
	for _, name := range files {
		packages = append(packages, "./"+path.Dir(name))
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	fmt.Fprintf(e.out, "Compiling the %d packages that the series touches, and their tests\n", len(packages))
	// Of go vet, whose analyzers need a package's types, one that finds nothing upstream.
	for _, args := range [][]string{
		{"build", "-tags", buildTags, "-mod=readonly"},
		{"vet", "-directive", "-tags", withoutNotest(buildTags), "-mod=readonly"},
	} {
		if text, err := goCommand(ctx, e.Dir(), runtime.GOARCH, append(args, packages...)...).CombinedOutput(); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("%s: what the series touches does not compile: %w\n%s\nCorrect it there (edit, git commit --fixup, git rebase --autosquash), then run the same command with --finish",
				e.repo.rel(e.Dir()), err, indent(tail(string(text), 60)))
		}
	}
	return nil
}

// FinishRebase exports a rebase that has no conflict left and compiles: the patches, the
// in-tree tests, the pin and the module files go to patches/<minor>, where they replace what
// is there.
func (r Repo) FinishRebase(ctx context.Context, from Upstream, version string, allowFewer bool, out io.Writer) error {
	tree := r.workTree(Upstream{}, "rebase/"+version, out)
	if !tree.exists() {
		return fmt.Errorf("no rebase to %s has been started", version)
	}
	to, _, err := rebaseTarget(ctx, from, version)
	if err != nil {
		return err
	}
	tree.upstream = to
	if started, err := r.git().run(ctx, "config", tree.fromVersion()); err != nil || started != from.Version {
		return errors.Join(err, fmt.Errorf("%s holds a rebase from %s, not from %s", r.rel(tree.Dir()), started, from.Version))
	}
	before, err := LoadSeries(r.patchDir(from))
	if err != nil {
		return err
	}
	series, err := tree.series(ctx, before, allowFewer)
	if err != nil {
		return err
	}
	if err := tree.compiles(ctx); err != nil {
		return err
	}
	if to.Minor() != from.Minor() {
		// Those of the work tree are compared with them.
		_, before := r.hookTestDirs(from)
		_, now := r.hookTestDirs(to)
		err := os.RemoveAll(now)
		if err == nil {
			err = os.CopyFS(now, os.DirFS(before))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := tree.exportAdded(ctx); err != nil {
		return err
	}
	for _, name := range moduleFiles {
		if err := copyFile(tree.file(name), filepath.Join(r.patchDir(to), name), 0o644); err != nil {
			return err
		}
	}
	if _, err := writeFile(filepath.Join(r.patchDir(to), "upstream.yaml"), to.yaml()); err != nil {
		return err
	}
	changed, err := series.write()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %d patches for %s, %d files changed. Next: make generate, make test-upstream KUBE_VERSION=%s\n",
		r.rel(series.Dir), len(series.Patches), to.Version, len(changed), to.Version)
	return os.RemoveAll(tree.Dir())
}

// yaml renders the pin as upstream.yaml.
func (u Upstream) yaml() []byte {
	return fmt.Appendf(nil, `# The upstream source that the patches of this directory belong to. Its bytes are
# checked against these sums before a tree is made; see build/upstream.go.
module: %s
version: %s
# Sums as in a go.sum file: of the module archive, and of its go.mod alone.
sum: %s
goModSum: %s
# The published version of the modules that upstream keeps under staging/.
stagingVersion: %s
`, u.Module, u.Version, u.Sum, u.GoModSum, u.StagingVersion)
}
