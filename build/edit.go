package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// EditTree is a work tree of the repository in which patches are written or rebased: on its
// branch are upstream's files, the guard package, a commit per patch, and the in-tree tests.
type EditTree struct {
	repo     Repo
	upstream Upstream
	// name is that of the branch, and the folder below _output.
	name string
	git  git
	out  io.Writer
}

// EditTree returns the edit tree for an upstream version. It need not exist yet.
// Progress is written to out.
func (r Repo) EditTree(u Upstream, out io.Writer) EditTree {
	return r.workTree(u, "edit/"+u.Minor(), out)
}

func (r Repo) workTree(u Upstream, name string, out io.Writer) EditTree {
	return EditTree{repo: r, upstream: u, name: name, git: git{dir: r.path("_output", filepath.FromSlash(name))}, out: out}
}

// Dir is the path of the work tree.
func (e EditTree) Dir() string { return e.git.dir }

func (e EditTree) file(name string) string { return filepath.Join(e.Dir(), filepath.FromSlash(name)) }

// exported is the head at the last apply or export. A head that differs has work that is
// nowhere else, and a file of the checkout that differs has changed there.
func (e EditTree) exported() string { return "refs/guard/exported/" + e.name }

// create makes the work tree, in the place of the one that may be there, with its branch at
// a commit.
func (e EditTree) create(ctx context.Context, commit string) error {
	if err := os.RemoveAll(e.Dir()); err != nil {
		return err
	}
	return e.repo.git().all(ctx,
		[]string{"worktree", "prune"},
		[]string{"update-ref", e.exported(), commit},
		[]string{"worktree", "add", "-q", "-B", e.name, e.Dir(), commit})
}

// Apply makes the work tree hold the pinned upstream, the guard package, the
// series and the in-tree tests of the checkout. It refuses to touch a tree with work that was not
// exported, unless force is set.
func (e EditTree) Apply(ctx context.Context, force bool) error {
	if e.exists() && !force {
		lost, err := e.unfinished(ctx)
		if err == nil && lost == "" {
			var exported string
			if exported, err = e.git.run(ctx, "for-each-ref", "--points-at=HEAD", e.exported()); exported == "" {
				lost = "commits that were not exported"
			}
		}
		if err != nil {
			return err
		}
		if lost != "" {
			return fmt.Errorf("%s has %s; export it first (guard-build patches export), or discard it with --force", e.repo.rel(e.Dir()), lost)
		}
	}
	src, err := e.repo.source(e.upstream, Guarded)
	if err != nil {
		return err
	}
	commit, err := e.repo.commit(ctx, src, e.out)
	if err != nil {
		return err
	}
	if err := e.create(ctx, commit); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s: %s, the guard package, %d patches and the in-tree tests. Commit hooks there, one commit per patch, then run guard-build patches export.\n",
		e.repo.rel(e.Dir()), e.upstream.Version, len(src.series.Patches))
	return nil
}

func (e EditTree) exists() bool {
	_, err := os.Stat(e.file(".git"))
	return err == nil
}

// unfinished describes work in the tree that is no commit yet, or is empty.
func (e EditTree) unfinished(ctx context.Context) (string, error) {
	dir, err := e.git.run(ctx, "rev-parse", "--absolute-git-dir")
	if err != nil {
		return "", err
	}
	for state, op := range map[string]string{"rebase-apply": "git am (git am --continue or --abort)", "rebase-merge": "git rebase (git rebase --continue or --abort)"} {
		if _, err := os.Stat(filepath.Join(dir, state)); err == nil {
			return "an unfinished " + op, nil
		}
	}
	dirty, err := e.git.run(ctx, "status", "--porcelain")
	if dirty != "" {
		dirty = "uncommitted changes:\n" + indent(dirty) + "\n"
	}
	return dirty, err
}

// finished returns an error for a tree that is not there, or has work that is no commit yet.
func (e EditTree) finished(ctx context.Context) error {
	if !e.exists() {
		return fmt.Errorf("%s does not exist; run guard-build patches apply first", e.repo.rel(e.Dir()))
	}
	work, err := e.unfinished(ctx)
	if err == nil && work != "" {
		err = fmt.Errorf("%s has %s; commit it (git commit, or git commit --fixup and git rebase --autosquash)", e.repo.rel(e.Dir()), work)
	}
	return err
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(s, "\n", "\n  ")
}
