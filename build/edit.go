package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Refs in the edit tree. They are outside refs/heads, so that no branch command
// moves them by accident.
const (
	// refBase is the commit with upstream's files and the pinned go.mod.
	refBase = "refs/guard/base"
	// refExported is the head at the last apply or export. A head that differs
	// from it holds work that is nowhere else.
	refExported = "refs/guard/exported"
)

// EditTree is the git work tree in which patches are written and rebased: a base
// commit with upstream's files, then a commit per patch. The guard package and the
// in-tree tests lie in it as ignored files, so that code there compiles while no
// patch can contain them.
type EditTree struct {
	repo     Repo
	upstream Upstream
	git      gitTree
	out      io.Writer
}

// EditTree returns the edit tree for an upstream version. It need not exist yet.
// Progress is written to out.
func (r Repo) EditTree(u Upstream, out io.Writer) EditTree {
	return EditTree{repo: r, upstream: u, git: gitTree{dir: r.path("_output", "edit", u.Minor())}, out: out}
}

// Dir is the path of the work tree.
func (e EditTree) Dir() string { return e.git.dir }

// Apply makes the work tree hold the pinned upstream, the guard package, the
// in-tree tests and the series. It refuses to touch a tree with work that was not
// exported, unless force is set.
func (e EditTree) Apply(ctx context.Context, force bool) error {
	if e.exists() && !force {
		lost, err := e.unexported(ctx)
		if err != nil {
			return err
		}
		if lost != "" {
			return fmt.Errorf("%s has %s; export it first (guard-build patches export), or discard it with --force", e.repo.rel(e.Dir()), lost)
		}
	}
	series, err := LoadSeries(e.repo.patchDir(e.upstream))
	if err != nil {
		return err
	}
	if err := e.reset(ctx); err != nil {
		return err
	}
	if err := e.sync(force); err != nil {
		return err
	}
	// After every step: commits of an apply that was cut short are nobody's work.
	if _, err := e.git.run(ctx, "update-ref", refExported, "HEAD"); err != nil {
		return err
	}
	for _, p := range series.Patches {
		if err := e.am(ctx, p); err != nil {
			return err
		}
		if _, err := e.git.run(ctx, "update-ref", refExported, "HEAD"); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.out, "%s: %s, the guard package and %d patches. Commit hooks there, one commit per patch, then run guard-build patches export.\n",
		e.repo.rel(e.Dir()), e.upstream.Version, len(series.Patches))
	return nil
}

func (e EditTree) exists() bool {
	_, err := os.Stat(filepath.Join(e.Dir(), ".git"))
	return err == nil
}

// unexported describes work in the tree that apply would throw away, or is empty.
func (e EditTree) unexported(ctx context.Context) (string, error) {
	if op := e.unfinished(); op != "" {
		return "an unfinished " + op, nil
	}
	dirty, err := e.git.run(ctx, "status", "--porcelain")
	if err != nil {
		return "", err
	}
	if dirty != "" {
		return "uncommitted changes:\n" + indent(dirty) + "\n", nil
	}
	head, err := e.git.run(ctx, "rev-parse", "HEAD", refExported)
	if err != nil {
		// Without refExported the first apply was cut short: nothing was handed over.
		return "", nil
	}
	if now, exported, _ := strings.Cut(head, "\n"); now != exported {
		return "commits that were not exported", nil
	}
	changed, err := e.editedOverlay()
	if err != nil {
		return "", err
	}
	if len(changed) > 0 {
		return "changes in files that are copies:\n" + indent(strings.Join(changed, "\n")) + "\n", nil
	}
	return "", nil
}

// unfinished names a git operation that waits for the developer.
func (e EditTree) unfinished() string {
	for dir, op := range map[string]string{"rebase-apply": "git am (git am --continue or --abort)", "rebase-merge": "git rebase (git rebase --continue or --abort)"} {
		if _, err := os.Stat(filepath.Join(e.Dir(), ".git", dir)); err == nil {
			return op
		}
	}
	return ""
}

// reset brings the tree to its base commit, making it when there is none for the
// pinned source.
func (e EditTree) reset(ctx context.Context) error {
	want, err := e.repo.baseFingerprint(e.upstream)
	if err != nil {
		return err
	}
	if e.exists() {
		if have, err := e.git.run(ctx, "config", "guard.base"); err == nil && have == want {
			for _, dir := range []string{"rebase-apply", "rebase-merge"} {
				if err := os.RemoveAll(filepath.Join(e.Dir(), ".git", dir)); err != nil {
					return err
				}
			}
			if _, err := e.git.run(ctx, "checkout", "-q", "-f", "-B", "guard", refBase); err != nil {
				return err
			}
			_, err := e.git.run(ctx, "clean", "-q", "-f", "-d", "-x", "-e", "/"+GuardDir)
			return err
		}
		if err := os.RemoveAll(e.Dir()); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.out, "Making the work tree of %s in %s\n", e.upstream.Version, e.repo.rel(e.Dir()))
	return buildDir(e.Dir(), func(tmp string) error {
		if err := e.repo.writeBase(ctx, e.upstream, tmp); err != nil {
			return err
		}
		return initBase(ctx, gitTree{dir: tmp}, e.upstream, want)
	})
}

// initBase turns a directory into a git tree with one commit.
func initBase(ctx context.Context, g gitTree, u Upstream, fingerprint string) error {
	for _, args := range [][]string{
		{"init", "-q", "-b", "guard"},
		// All files, also those that upstream's .gitignore names: the base commit is
		// the archive, and git clean must not remove a part of it.
		{"add", "-A", "-f"},
		{"commit", "-q", "--allow-empty", "-m", "Kubernetes " + u.Version + " as published, with the pinned go.mod"},
		{"update-ref", refBase, "HEAD"},
		{"config", "guard.base", fingerprint},
	} {
		if _, err := g.run(ctx, args...); err != nil {
			return err
		}
	}
	// A developer's own identity stays; without one, git would make one up from
	// the host name.
	if out, _ := command(ctx, g.dir, "git", "config", "user.email").Output(); len(out) == 0 {
		for key, value := range map[string]string{"user.name": toolName, "user.email": toolEmail} {
			if _, err := g.run(ctx, "config", key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// scratch makes an edit tree in a temporary folder, with nothing of upstream but the files
// that the patches touch. Patches apply to these, and are rendered, as in the whole tree.
func (r Repo) scratch(ctx context.Context, s source, stock string, out io.Writer) (tree EditTree, remove func(), err error) {
	dir, err := os.MkdirTemp("", "guard-patches-*")
	if err != nil {
		return EditTree{}, nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	tree = EditTree{repo: r, upstream: s.upstream, git: gitTree{dir: dir}, out: out}
	for _, name := range s.series.touched() {
		if err := copyIfExists(filepath.Join(stock, filepath.FromSlash(name)), tree.file(name)); err != nil {
			remove()
			return EditTree{}, nil, err
		}
	}
	if err := initBase(ctx, tree.git, s.upstream, s.base); err != nil {
		remove()
		return EditTree{}, nil, err
	}
	return tree, remove, nil
}

// amArgs apply mails without a merge, a signature or a change of the bytes.
var amArgs = []string{"am", "-q", "--no-3way", "--keep-cr", "--no-gpg-sign", "--committer-date-is-author-date", "--whitespace=nowarn"}

// am applies one patch as a commit, exactly as it is.
func (e EditTree) am(ctx context.Context, p Patch) error {
	if _, err := e.git.raw(ctx, p.Data, amArgs...); err != nil {
		return fmt.Errorf("%s/%s does not apply to %s: %w", e.repo.rel(e.repo.patchDir(e.upstream)), p.Name, e.upstream.Version, err)
	}
	return nil
}

// overlayManifest records what Sync copied, by path: the hex SHA-256 of each file.
type overlayManifest map[string]string

func (e EditTree) manifestFile() string {
	return filepath.Join(e.Dir(), ".git", "guard-overlay.json")
}

func (e EditTree) readManifest() (overlayManifest, error) {
	m := overlayManifest{}
	data, err := os.ReadFile(e.manifestFile())
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	return m, json.Unmarshal(data, &m)
}

// Sync copies the guard package and the in-tree tests into the work tree again,
// after they changed in the repository. It refuses to overwrite a copy that was
// edited.
func (e EditTree) Sync() error {
	if !e.exists() {
		return fmt.Errorf("%s does not exist; run guard-build patches apply first", e.repo.rel(e.Dir()))
	}
	return e.sync(false)
}

func (e EditTree) sync(force bool) error {
	files, err := e.repo.addedFiles(e.upstream)
	if err != nil {
		return err
	}
	old, err := e.readManifest()
	if err != nil {
		return err
	}
	edited, err := e.editedOverlay()
	if err != nil {
		return err
	}
	for _, name := range edited {
		have, err := os.ReadFile(e.file(name))
		if err != nil {
			return err
		}
		if _, wanted := files[name]; force && !wanted {
			if err := os.Remove(e.file(name)); err != nil {
				return err
			}
		} else if !force && string(have) != string(files[name]) {
			return fmt.Errorf("%s/%s was edited in the work tree; %s", e.repo.rel(e.Dir()), name, e.home(name))
		}
	}
	m := overlayManifest{}
	exclude := []string{"# Copies of files of the Kubelet Guard repository: no part of a patch.", "/" + GuardDir + "/"}
	for name, data := range files {
		if _, err := writeFile(e.file(name), data, 0o644); err != nil {
			return err
		}
		m[name] = hexSum(data)
		if !strings.HasPrefix(name, GuardDir+"/") {
			exclude = append(exclude, "/"+name)
		}
	}
	for name := range old {
		if _, still := m[name]; !still {
			if err := os.Remove(e.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	sort.Strings(exclude[2:])
	if _, err := writeFile(filepath.Join(e.Dir(), ".git", "info", "exclude"), []byte(strings.Join(exclude, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	_, err = writeFile(e.manifestFile(), data, 0o644)
	return err
}

func (e EditTree) file(name string) string { return filepath.Join(e.Dir(), filepath.FromSlash(name)) }

// home says where a change to a copied file belongs.
func (e EditTree) home(name string) string {
	if inGuard(name) {
		return "the guard package is ordinary source of this repository: make the change in " + name + " there, remove the copy, and run guard-build patches sync"
	}
	return "guard-build patches export writes it to " + e.repo.rel(e.repo.patchDir(e.upstream)) + "/tests/"
}

// editedOverlay returns the copied files that no longer have the bytes that were
// copied, and files that were added to the guard package, sorted.
func (e EditTree) editedOverlay() ([]string, error) {
	m, err := e.readManifest()
	if err != nil {
		return nil, err
	}
	now := map[string][]byte{}
	if err := readTree(e.file(GuardDir), GuardDir, now); err != nil {
		return nil, err
	}
	for name := range m {
		if _, have := now[name]; have {
			continue
		}
		data, err := os.ReadFile(e.file(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Removed copies hold no work.
		}
		if err != nil {
			return nil, err
		}
		now[name] = data
	}
	var out []string
	for name, data := range now {
		if hexSum(data) != m[name] {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out, nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(s, "\n", "\n  ")
}
