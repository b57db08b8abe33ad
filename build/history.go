package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// git returns the repository of upstream's files and the patches, _output/git, which has no
// work tree of its own. One repository for all versions lets a rebase merge between two.
//
// A commit without a parent has the stock tree of a version. On top of it come the guard
// package, each patch, and the in-tree tests. refs/guard/<release>/<key> is the commit of the
// source with that key; the release is in a message.
func (r Repo) git() git {
	dir := r.path("_output", "git")
	return git{dir: dir, env: []string{"GIT_DIR=" + dir}} // never the repository around it
}

// gitIn returns the repository with a folder as its work tree, and an index that is empty
// until remove removes it.
func (r Repo) gitIn(dir string) (g git, remove func(), err error) {
	tmp, err := os.MkdirTemp("", "guard-index-*")
	g = r.git()
	g.dir = dir
	g.env = append(g.env, "GIT_WORK_TREE="+dir, "GIT_INDEX_FILE="+filepath.Join(tmp, "index"))
	return g, func() { os.RemoveAll(tmp) }, err
}

// commit returns the commit of a source, which it makes unless the repository has it. The
// patches are applied without fuzz. Of several processes in this checkout, one at a time does
// this.
func (r Repo) commit(ctx context.Context, s source, out io.Writer) (string, error) {
	if err := os.MkdirAll(r.git().dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(r.git().dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	if err := flock(ctx, lock, syscall.LOCK_EX, nil); err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := r.git().run(ctx, "init", "-q", "--bare"); err != nil {
		return "", err
	}
	// Without an identity of the developer's own, git would make one of the host name.
	if own, _ := command(ctx, r.git().dir, "git", "config", "user.email").Output(); len(own) == 0 {
		if err := r.git().all(ctx, []string{"config", "user.name", toolName}, []string{"config", "user.email", toolEmail}); err != nil {
			return "", err
		}
	}
	return r.lockedCommit(ctx, s, out)
}

// lockedCommit is commit in a repository that is locked.
func (r Repo) lockedCommit(ctx context.Context, s source, out io.Writer) (string, error) {
	ref := "refs/guard/" + Release + "/" + s.key()
	if commit, err := r.git().run(ctx, "rev-parse", "--verify", "-q", ref); err == nil {
		return commit, nil
	}
	makeCommit := r.commitSeries
	if s.tree == Stock {
		makeCommit = r.commitStock
	}
	commit, err := makeCommit(ctx, s, out)
	if err == nil {
		_, err = r.git().run(ctx, "update-ref", ref, commit)
	}
	return commit, err
}

// commitStock commits the stock tree.
func (r Repo) commitStock(ctx context.Context, s source, out io.Writer) (string, error) {
	stock, release, err := r.hold(ctx, s, out)
	if err != nil {
		return "", err
	}
	defer release()
	g, remove, err := r.gitIn(stock)
	if err != nil {
		return "", err
	}
	defer remove()
	// All files, also those that upstream's .gitignore names.
	if _, err := g.run(ctx, "add", "-A", "-f", "."); err != nil {
		return "", err
	}
	tree, err := g.run(ctx, "write-tree")
	if err != nil {
		return "", err
	}
	return g.run(ctx, "commit-tree", "-m", "Kubernetes "+s.upstream.Version+" as published, with the pinned go.mod", tree)
}

// commitSeries commits the guard package, the patches and the in-tree tests on top of the
// stock tree.
func (r Repo) commitSeries(ctx context.Context, s source, out io.Writer) (string, error) {
	base, err := r.lockedCommit(ctx, s.stock(), out)
	if err != nil {
		return "", err
	}
	// git am writes the files that it changes, and needs no others in its work tree.
	tmp, err := os.MkdirTemp("", "guard-series-*")
	if err != nil {
		return "", err
	}
	tree := git{dir: filepath.Join(tmp, "tree")}
	defer func() {
		os.RemoveAll(tmp)
		_, _ = r.git().run(context.WithoutCancel(ctx), "worktree", "prune")
	}()
	if _, err := r.git().run(ctx, "worktree", "add", "-q", "--detach", "--no-checkout", tree.dir, base); err != nil {
		return "", err
	}
	if _, err := tree.run(ctx, "read-tree", base); err != nil {
		return "", err
	}
	guard, tests := map[string][]byte{}, map[string][]byte{}
	for name, data := range s.added {
		if inGuard(name) {
			guard[name] = data
		} else {
			tests[name] = data
		}
	}
	if err := tree.commitFiles(ctx, s.upstream, guard, "kubelet: add the guard package\n\nVersion "+Release+" of Kubelet Guard decides, remembers and reports; the patches that\nfollow only call it."); err != nil {
		return "", err
	}
	for _, p := range s.series.Patches {
		if _, err := tree.raw(ctx, p.Data, "am", "-q", "--no-3way", "--keep-cr", "--committer-date-is-author-date", "--whitespace=nowarn"); err != nil {
			return "", fmt.Errorf("%s/%s does not apply to %s: %w", r.rel(r.patchDir(s.upstream)), p.Name, s.upstream.Version, err)
		}
	}
	if err := tree.commitFiles(ctx, s.upstream, tests, "kubelet: test the hooks of the guard\n\nThese tests need the kubelet's own types, so they cannot be in the guard package."); err != nil {
		return "", err
	}
	return tree.run(ctx, "rev-parse", "HEAD")
}

// commitFiles commits files that the tree does not have; without files there is no commit.
func (g git) commitFiles(ctx context.Context, u Upstream, files map[string][]byte, message string) error {
	if len(files) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		if _, err := writeFile(filepath.Join(g.dir, filepath.FromSlash(name)), files[name]); err != nil {
			return err
		}
	}
	if _, err := g.run(ctx, append([]string{"add", "-f", "--"}, names...)...); err != nil {
		return err
	}
	old, err := g.run(ctx, "diff", "--cached", "--name-only", "--diff-filter=M", "HEAD")
	if err != nil {
		return err
	}
	if old != "" {
		return fmt.Errorf("%s exists in %s too; added files must be new, a change of an upstream file is a patch", old, u.Version)
	}
	_, err = g.run(ctx, "commit", "-q", "-m", message)
	return err
}

// addedIn returns the files that a commit adds to upstream's and that are no part of a
// patch, by path: the guard package and the in-tree tests. The values are the hashes that
// git gives their content.
func (g git) addedIn(ctx context.Context, commit string) (map[string]string, error) {
	base, err := g.base(ctx, commit)
	if err != nil {
		return nil, err
	}
	lines, err := g.lines(ctx, "diff", "--raw", "--no-abbrev", "--no-renames", "--diff-filter=A", base, commit)
	files := map[string]string{}
	for _, line := range lines {
		// :000000 100644 <zeroes> <hash> A<tab><name>
		status, name, _ := strings.Cut(line, "\t")
		if inGuard(name) || testOnly(name) {
			files[name] = strings.Fields(status)[3]
		}
	}
	return files, err
}

// base returns the commit of the stock tree below a commit.
func (g git) base(ctx context.Context, commit string) (string, error) {
	roots, err := g.lines(ctx, "rev-list", "--max-parents=0", commit)
	if err == nil && len(roots) != 1 {
		err = fmt.Errorf("%s has %d commits without a parent; a series has one, upstream's files", g.dir, len(roots))
	}
	if err != nil {
		return "", err
	}
	return roots[0], nil
}

// render returns the commits up to HEAD as patches, oldest first, without the guard package
// and the in-tree tests.
func (g git) render(ctx context.Context, head, dir string) (Series, error) {
	s := Series{Dir: dir}
	base, err := g.base(ctx, head)
	if err != nil {
		return s, err
	}
	merges, err := g.run(ctx, "rev-list", "--merges", base+".."+head)
	if err != nil {
		return s, err
	}
	if merges != "" {
		return s, fmt.Errorf("%s has merge commits; a series is linear: rebase them", g.dir)
	}
	added, err := g.lines(ctx, "log", "--format=", "--name-only", "--no-renames", "--diff-filter=A", base+".."+head)
	if err != nil {
		return s, err
	}
	paths := []string{"--", "."}
	for _, name := range added {
		if inGuard(name) || testOnly(name) {
			paths = append(paths, ":(exclude,literal)"+name)
		}
	}
	commits, err := g.lines(ctx, append([]string{"rev-list", "--reverse", base + ".." + head}, paths...)...)
	if err != nil {
		return s, err
	}
	seen := map[string]string{}
	for _, commit := range commits {
		data, err := g.raw(ctx, nil, slices.Concat([]string{"format-patch", "-1", "--stdout"}, formatArgs, []string{commit}, paths)...)
		if err != nil {
			return s, err
		}
		p, err := ParsePatch("commit "+commit[:12], anonymous(data))
		if err != nil {
			return s, err
		}
		p.Name = patchName(p.Subject)
		if other, twice := seen[p.Name]; twice {
			return s, fmt.Errorf("commits %q and %q both give %s; give them different subjects", other, p.Subject, p.Name)
		}
		seen[p.Name] = p.Subject
		s.Patches = append(s.Patches, p)
	}
	return s, nil
}

// formatArgs are the options of git format-patch: every one that a configuration could
// change.
var formatArgs = []string{"--zero-commit", "--no-signature", "--full-index", "--no-stat", "-N", "--no-renames",
	"--no-attach", "--no-thread", "--no-cover-letter", "-U3", "--src-prefix=a/", "--dst-prefix=b/"}

// The headers of a mail that name its author and its time; either may go on in further lines.
var (
	mailAuthor = regexp.MustCompile(`\nFrom: .*(\n .*)*`)
	mailSent   = regexp.MustCompile(`\nDate: .*(\n .*)*`)
)

// anonymous gives a patch the project's own author and date. This repository's history has
// who wrote it and when; in the patch, both would change bytes when another person
// amends a commit.
func anonymous(patch []byte) []byte {
	header, rest, _ := bytes.Cut(patch, []byte("\n\n"))
	header = mailAuthor.ReplaceAll(header, []byte("\nFrom: "+toolName+" <"+toolEmail+">"))
	header = mailSent.ReplaceAll(header, []byte("\nDate: "+mailDate))
	return append(append(header, "\n\n"...), rest...)
}

// WriteSeries writes the whole change as mails for git am, into
// _output/series/<version>: a patch that adds the guard package, the patches, and
// one that adds the in-tree tests. They apply to a Kubernetes checkout at the tag
// of the same name. It returns the directory.
func (r Repo) WriteSeries(ctx context.Context, u Upstream, out io.Writer) (string, error) {
	src, err := r.source(u, Guarded)
	if err != nil {
		return "", err
	}
	commit, err := r.commit(ctx, src, out)
	if err != nil {
		return "", err
	}
	dir := r.path("_output", "series", u.Version)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	base, err := r.git().base(ctx, commit)
	if err != nil {
		return "", err
	}
	mails, err := r.git().lines(ctx, slices.Concat([]string{"format-patch", "-o", dir}, formatArgs, []string{base + ".." + commit})...)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(out, "%s: %d patches. In a Kubernetes checkout at %s:\n  git am %s/*.patch\n", r.rel(dir), len(mails), u.Version, dir)
	return dir, nil
}
