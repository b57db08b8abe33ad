package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/semver"
	"sigs.k8s.io/yaml"
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
	// Applied and Total count patches.
	Applied, Total int
}

// Error names every file.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s conflicts (patch %d of %d):\n%s\nResolve it in %s (edit, git add, git am --continue), then run the same command with --finish",
		e.Patch, e.Applied+1, e.Total, indent(strings.Join(e.Conflicts, "\n")), e.Tree)
}

// refRebased is the series on the old source in the work tree of a rebase. It keeps
// the objects, and is there to compare with.
const refRebased = "refs/guard/rebased"

// rebaseState is what a rebase keeps between its two halves, in the .git directory
// of its work tree.
type rebaseState struct {
	Upstream Upstream `json:"upstream"`
	From     string   `json:"from"`
	Patches  int      `json:"patches"`
}

func (r Repo) rebaseTree(version string, u Upstream, out io.Writer) EditTree {
	return EditTree{repo: r, upstream: u, git: gitTree{dir: r.path("_output", "rebase", version)}, out: out}
}

// Rebase carries the series of from over to another upstream version, with a
// three-way merge where the context changed. It works in _output/rebase/<version>
// and leaves the patches of this repository alone until FinishRebase. A patch that
// does not merge is reported as a *ConflictError.
func (r Repo) Rebase(ctx context.Context, from Upstream, version string, force bool, out io.Writer) error {
	if !semver.IsValid(version) || semver.Canonical(version) != version {
		return fmt.Errorf("--to: %q is not a full version such as v1.36.3", version)
	}
	got, err := downloadModule(ctx, from.Module, version)
	if err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	to := Upstream{
		Module: from.Module, Version: version, Sum: got.Sum, GoModSum: got.GoModSum,
		StagingVersion: "v0" + strings.TrimPrefix(version, "v1"),
		file:           "upstream.yaml",
	}
	series, err := LoadSeries(r.patchDir(from))
	if err != nil {
		return err
	}
	if len(series.Patches) == 0 {
		return fmt.Errorf("%s has no patches to rebase", r.rel(r.patchDir(from)))
	}
	tree := r.rebaseTree(version, to, out)
	if tree.exists() && !force {
		return fmt.Errorf("%s holds a rebase already; finish it with --finish, or discard it with --force", r.rel(tree.Dir()))
	}
	if err := os.RemoveAll(tree.Dir()); err != nil {
		return err
	}
	pinned, err := r.resolvePins(ctx, to, got.Dir, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Making the work tree %s\n", r.rel(tree.Dir()))
	err = buildDir(tree.Dir(), func(tmp string) error {
		// The old source first, with the series: the blobs between two patches of one
		// file, too, are what a three-way merge starts from.
		if err := r.writeBase(ctx, from, tmp); err != nil {
			return err
		}
		g := gitTree{dir: tmp}
		if err := initBase(ctx, g, from, ""); err != nil {
			return err
		}
		old := EditTree{repo: r, upstream: from, git: g, out: out}
		for _, p := range series.Patches {
			if err := old.am(ctx, p); err != nil {
				return err
			}
		}
		for _, args := range [][]string{{"update-ref", refRebased, "HEAD"}, {"reset", "-q", "--hard", refBase}} {
			if _, err := g.run(ctx, args...); err != nil {
				return err
			}
		}
		if err := emptyWorkTree(tmp); err != nil {
			return err
		}
		if err := writePinned(ctx, to, pinned, tmp); err != nil {
			return err
		}
		for _, args := range [][]string{
			{"add", "-A", "-f"},
			{"commit", "-q", "--allow-empty", "-m", "Kubernetes " + to.Version + " as published, with the pinned go.mod"},
			{"update-ref", refBase, "HEAD"},
		} {
			if _, err := g.run(ctx, args...); err != nil {
				return err
			}
		}
		data, err := yaml.Marshal(rebaseState{Upstream: to, From: from.Version, Patches: len(series.Patches)})
		if err != nil {
			return err
		}
		_, err = writeFile(rebaseStateFile(tmp), data, 0o644)
		return err
	})
	if err != nil {
		return err
	}
	if err := tree.amAll(ctx, series); err != nil {
		return err
	}
	fmt.Fprintf(out, "All %d patches apply to %s. Review them in %s, then run the same command with --finish.\n", len(series.Patches), version, r.rel(tree.Dir()))
	return nil
}

func rebaseStateFile(dir string) string {
	return filepath.Join(dir, ".git", "guard-rebase.yaml")
}

// emptyWorkTree removes everything but .git.
func emptyWorkTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == ".git" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// amAll applies the whole series in one git am, so that git am --continue goes on
// with the patches that follow a conflict.
func (e EditTree) amAll(ctx context.Context, series Series) error {
	var mails bytes.Buffer
	for _, p := range series.Patches {
		mails.Write(p.Data)
		mails.WriteString("\n")
	}
	// Not quiet: the conflicts are among the progress.
	loud := slices.DeleteFunc(append(slices.Clone(amArgs), "--3way"), func(arg string) bool { return arg == "-q" })
	out, err := e.git.raw(ctx, mails.Bytes(), loud...)
	if err == nil || e.unfinished() == "" {
		return err
	}
	conflict := &ConflictError{Tree: e.repo.rel(e.Dir()), Total: len(series.Patches)}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "CONFLICT ") {
			conflict.Conflicts = append(conflict.Conflicts, strings.TrimSpace(line))
		}
	}
	applied, countErr := e.git.run(ctx, "rev-list", "--count", refBase+"..HEAD")
	if countErr == nil {
		conflict.Applied, countErr = strconv.Atoi(applied)
	}
	if countErr != nil || len(conflict.Conflicts) == 0 || conflict.Applied >= len(series.Patches) {
		return errors.Join(err, countErr)
	}
	conflict.Patch = series.Patches[conflict.Applied].Name
	return conflict
}

// FinishRebase exports a rebase that has no conflict left: the patches, the pin and
// the module files go to patches/<minor>, where they replace what is there. A
// rebase to another minor version takes the in-tree tests along.
func (r Repo) FinishRebase(ctx context.Context, from Upstream, version string, allowFewer bool, out io.Writer) error {
	tree := r.rebaseTree(version, Upstream{}, out)
	data, err := os.ReadFile(rebaseStateFile(tree.Dir()))
	if err != nil {
		return fmt.Errorf("no rebase to %s has been started: %w", version, err)
	}
	var state rebaseState
	if err := yaml.UnmarshalStrict(data, &state); err != nil {
		return fmt.Errorf("%s: %w", rebaseStateFile(tree.Dir()), err)
	}
	if state.From != from.Version {
		return fmt.Errorf("%s holds a rebase from %s, not from %s", r.rel(tree.Dir()), state.From, from.Version)
	}
	to := state.Upstream
	tree.upstream = to
	if op := tree.unfinished(); op != "" {
		return fmt.Errorf("%s has an unfinished %s", r.rel(tree.Dir()), op)
	}
	if dirty, err := tree.git.run(ctx, "status", "--porcelain"); err != nil || dirty != "" {
		return errors.Join(err, fmt.Errorf("%s has uncommitted changes; commit or remove them:\n%s", r.rel(tree.Dir()), indent(dirty)))
	}
	series, err := tree.series(ctx)
	if err != nil {
		return err
	}
	if len(series.Patches) == 0 || len(series.Patches) < state.Patches && !allowFewer {
		return fmt.Errorf("%s has %d commits, the series had %d patches; if one became superfluous, add --allow-fewer", r.rel(tree.Dir()), len(series.Patches), state.Patches)
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(tree.file(name))
		if err != nil {
			return err
		}
		if _, err := writeFile(filepath.Join(r.patchDir(to), name), data, 0o644); err != nil {
			return err
		}
	}
	if _, err := writeFile(filepath.Join(r.patchDir(to), "upstream.yaml"), to.yaml(), 0o644); err != nil {
		return err
	}
	if to.Minor() != from.Minor() {
		tests := map[string][]byte{}
		if err := readTree(filepath.Join(r.patchDir(from), "tests"), "", tests); err != nil {
			return err
		}
		for name, data := range tests {
			if _, err := writeFile(filepath.Join(r.patchDir(to), "tests", filepath.FromSlash(name)), data, 0o644); err != nil {
				return err
			}
		}
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
