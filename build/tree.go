package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Tree names a prepared source tree of an upstream version.
type Tree string

const (
	// Stock is upstream's source with the pinned go.mod and nothing else changed.
	Stock Tree = "stock"
	// Guarded is Stock with the guard package, the patches and the in-tree tests.
	Guarded Tree = "guarded"
)

// source is everything that a tree is made of.
type source struct {
	upstream Upstream
	tree     Tree
	// modules are the pinned go.mod and go.sum.
	modules map[string][]byte
	// series and added are empty for Stock.
	series Series
	added  map[string][]byte
}

// source reads what a tree of this checkout is made of.
func (r Repo) source(u Upstream, t Tree) (source, error) {
	s := source{upstream: u, tree: t, modules: map[string][]byte{}}
	for _, name := range moduleFiles {
		data, err := os.ReadFile(filepath.Join(r.patchDir(u), name))
		if err != nil {
			return s, fmt.Errorf("%w; make it with guard-build pin", err)
		}
		s.modules[name] = data
	}
	if t == Stock {
		return s, nil
	}
	var err error
	if s.series, err = LoadSeries(r.patchDir(u)); err != nil {
		return s, err
	}
	s.added, err = r.addedFiles(u)
	return s, err
}

// stock is the source of the stock tree below.
func (s source) stock() source {
	return source{upstream: s.upstream, tree: Stock, modules: s.modules}
}

// key names the tree in the cache. It stands for every byte of the tree.
func (s source) key() string {
	return s.upstream.Version + "-" + string(s.tree) + "-" + s.fingerprint(func(string) bool { return true })[:32]
}

// fingerprint identifies what goes into the tree, of the added files those that are wanted.
func (s source) fingerprint(wanted func(name string) bool) string {
	h := sha256.New()
	// The number counts changes of writeBase itself.
	fmt.Fprintf(h, "base 1\n%s %s %s\n", s.upstream.Module, s.upstream.Version, s.upstream.Sum)
	for _, name := range moduleFiles {
		hashFile(h, name, s.modules[name])
	}
	for _, p := range s.series.Patches {
		hashFile(h, p.Name, p.Data)
	}
	for _, name := range slices.Sorted(maps.Keys(s.added)) {
		if wanted(name) {
			hashFile(h, name, s.added[name])
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func hashFile(h io.Writer, name string, data []byte) {
	fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
}

// Prepare returns the directory of a source tree, which it makes unless the cache has it.
// Progress is written to out.
func (r Repo) Prepare(ctx context.Context, u Upstream, t Tree, out io.Writer) (string, error) {
	_, dir, release, err := r.holdTree(ctx, u, t, out)
	if err == nil {
		release()
	}
	return dir, err
}

// holdTree is hold for a tree of this checkout.
func (r Repo) holdTree(ctx context.Context, u Upstream, t Tree, out io.Writer) (s source, dir string, release func(), err error) {
	if s, err = r.source(u, t); err == nil {
		dir, release, err = r.hold(ctx, s, out)
	}
	return s, dir, release, err
}

// hold returns the directory of a tree that stays as it is, and that nobody removes before
// release is called.
func (r Repo) hold(ctx context.Context, s source, out io.Writer) (dir string, release func(), err error) {
	return r.cache().hold(ctx, "trees", s.key(), out, func(dir string) error {
		fmt.Fprintf(out, "Making the %s tree of %s\n", s.tree, s.upstream.Version)
		if s.tree == Stock {
			return writeBase(ctx, s, dir)
		}
		return r.writeGuarded(ctx, s, dir, out)
	})
}

// writeGuarded makes a guarded tree: the files of the stock tree as links, and those that
// differ on top.
func (r Repo) writeGuarded(ctx context.Context, s source, dir string, out io.Writer) error {
	commit, err := r.commit(ctx, s, out)
	if err != nil {
		return err
	}
	stock, release, err := r.hold(ctx, s.stock(), out)
	if err != nil {
		return err
	}
	defer release()
	if err := linkTree(ctx, stock, dir); err != nil {
		return err
	}
	base, err := r.git().base(ctx, commit)
	if err != nil {
		return err
	}
	changed, err := r.git().lines(ctx, "diff", "--name-only", "--no-renames", base, commit)
	if err != nil {
		return err
	}
	g, remove, err := r.gitIn(dir)
	if err != nil {
		return err
	}
	defer remove()
	// Git replaces a link instead of writing through it.
	if _, err := g.run(ctx, append([]string{"checkout", "-q", commit, "--"}, changed...)...); err != nil {
		return err
	}
	fmt.Fprintf(out, "The %s tree of %s: %d patches, %d added files\n", s.tree, s.upstream.Version, len(s.series.Patches), len(s.added))
	return nil
}

// linkTree fills to with the files of from as hard links.
func linkTree(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		return os.Link(path, filepath.Join(to, rel))
	})
}

// moduleFiles are the files that pin the modules of a tree.
var moduleFiles = []string{"go.mod", "go.sum"}

// writeBase copies the verified archive to dir and pins its module files.
func writeBase(ctx context.Context, s source, dir string) error {
	src, err := s.upstream.Fetch(ctx)
	if err != nil {
		return err
	}
	if err := s.upstream.VerifyDir(src); err != nil {
		return err
	}
	if err := copyTree(src, dir); err != nil {
		return err
	}
	for name, data := range s.modules {
		if _, err := writeFile(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies a tree to a folder that does not exist, or is empty, without the files of
// the archive that describe upstream's own checkout: a workspace whose staging modules the
// archive does not have. The copies can be written. Executable bits do not survive in module
// archives.
func copyTree(from, to string) error {
	err := os.CopyFS(to, os.DirFS(from))
	for _, name := range []string{"go.work", "go.work.sum"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(to, name)))
	}
	return err
}
