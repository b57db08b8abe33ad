package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
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
	// base identifies the archive and the pinned module files.
	base string
	// series and added are empty for Stock.
	series Series
	added  map[string][]byte
}

// source reads what a tree of this checkout is made of.
func (r Repo) source(u Upstream, t Tree) (source, error) {
	s := source{upstream: u, tree: t}
	var err error
	if s.base, err = r.baseFingerprint(u); err != nil || t == Stock {
		return s, err
	}
	if s.series, err = LoadSeries(r.patchDir(u)); err != nil {
		return s, err
	}
	s.added, err = r.addedFiles(u)
	return s, err
}

// key names the tree in the cache. It stands for every byte of the tree.
func (s source) key() string {
	key := s.base
	if s.tree != Stock {
		key = fmt.Sprintf("%x", sha256.Sum256([]byte(s.base+overlayFingerprint(s.series, s.added))))
	}
	return s.upstream.Version + "-" + string(s.tree) + "-" + key[:32]
}

// Prepare returns the directory of a source tree, which it makes unless the cache has it.
// Progress is written to out.
func (r Repo) Prepare(ctx context.Context, u Upstream, t Tree, out io.Writer) (string, error) {
	s, err := r.source(u, t)
	if err != nil {
		return "", err
	}
	dir, release, err := r.hold(ctx, s, out)
	if err != nil {
		return "", err
	}
	release()
	return dir, nil
}

// hold returns the directory of a tree that stays as it is, and that nobody removes before
// release is called.
func (r Repo) hold(ctx context.Context, s source, out io.Writer) (dir string, release func(), err error) {
	return r.cache().hold(ctx, "trees", s.key(), out, func(dir string) error {
		fmt.Fprintf(out, "Making the %s tree of %s\n", s.tree, s.upstream.Version)
		if s.tree == Stock {
			return r.writeBase(ctx, s.upstream, dir)
		}
		return r.writeGuarded(ctx, s, dir, out)
	})
}

// writeGuarded makes a guarded tree: the files of the stock tree as links, and those that
// differ on top.
func (r Repo) writeGuarded(ctx context.Context, s source, dir string, out io.Writer) error {
	stock, release, err := r.hold(ctx, source{upstream: s.upstream, tree: Stock, base: s.base}, out)
	if err != nil {
		return err
	}
	defer release()
	want, err := r.overlay(ctx, s, stock)
	if err != nil {
		return err
	}
	if err := linkTree(ctx, stock, dir); err != nil {
		return err
	}
	for name, data := range want {
		// Replaces the link and leaves the stock tree alone.
		if _, err := writeFile(filepath.Join(dir, filepath.FromSlash(name)), data, 0o644); err != nil {
			return err
		}
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

// overlay returns the files in which the guarded tree differs from the stock tree,
// with their content. The patches are applied without fuzz.
func (r Repo) overlay(ctx context.Context, s source, stock string) (map[string][]byte, error) {
	u, series, added := s.upstream, s.series, s.added
	for name := range added {
		if _, err := os.Lstat(filepath.Join(stock, filepath.FromSlash(name))); err == nil {
			return nil, fmt.Errorf("%s exists in %s too; added files must be new, a change of an upstream file is a patch", name, u.Version)
		}
	}
	tree, remove, err := r.scratch(ctx, s, stock, io.Discard)
	if err != nil {
		return nil, err
	}
	defer remove()
	want := map[string][]byte{}
	for _, p := range series.Patches {
		if err := tree.am(ctx, p); err != nil {
			return nil, err
		}
	}
	for _, name := range series.touched() {
		data, err := os.ReadFile(tree.file(name))
		if err != nil {
			return nil, err
		}
		want[name] = data
	}
	for name, data := range added {
		if _, both := want[name]; both {
			return nil, fmt.Errorf("%s is both in a patch and among the added files", name)
		}
		want[name] = data
	}
	return want, nil
}

// baseFingerprint identifies what goes into the stock tree.
func (r Repo) baseFingerprint(u Upstream) (string, error) {
	h := sha256.New()
	// The number counts changes of writeBase itself.
	fmt.Fprintf(h, "base 1\n%s %s %s\n", u.Module, u.Version, u.Sum)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(r.patchDir(u), name))
		if err != nil {
			return "", fmt.Errorf("%w; make it with guard-build pin", err)
		}
		hashFile(h, name, data)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func overlayFingerprint(series Series, added map[string][]byte) string {
	h := sha256.New()
	for _, p := range series.Patches {
		hashFile(h, p.Name, p.Data)
	}
	names := make([]string, 0, len(added))
	for name := range added {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		hashFile(h, name, added[name])
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func hashFile(h hash.Hash, name string, data []byte) {
	fmt.Fprintf(h, "%s %d\n", name, len(data))
	h.Write(data)
}

// writeBase copies the verified archive to dir and pins its module files.
func (r Repo) writeBase(ctx context.Context, u Upstream, dir string) error {
	var p pins
	var err error
	if p.goMod, err = os.ReadFile(filepath.Join(r.patchDir(u), "go.mod")); err != nil {
		return fmt.Errorf("%w; make it with guard-build pin", err)
	}
	if p.goSum, err = os.ReadFile(filepath.Join(r.patchDir(u), "go.sum")); err != nil {
		return fmt.Errorf("%w; make it with guard-build pin", err)
	}
	return writePinned(ctx, u, p, dir)
}

// writePinned is writeBase with given module files.
func writePinned(ctx context.Context, u Upstream, p pins, dir string) error {
	src, err := u.Fetch(ctx)
	if err != nil {
		return err
	}
	if err := u.VerifyDir(src); err != nil {
		return err
	}
	if err := copyTree(ctx, src, dir); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"go.mod": p.goMod, "go.sum": p.goSum} {
		if _, err := writeFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// droppedFromBase are files of the archive that describe upstream's own checkout:
// a workspace whose staging modules the archive does not have.
var droppedFromBase = map[string]bool{"go.work": true, "go.work.sum": true}

// copyTree copies regular files; the module cache has them read-only, the copies
// can be written. Executable bits do not survive in module archives, so there is
// one mode for all.
func copyTree(ctx context.Context, from, to string) error {
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
		if droppedFromBase[rel] {
			return nil
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s: not a regular file", path)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func copyIfExists(from, to string) error {
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return copyFile(from, to)
}

// buildDir makes a directory under a temporary name next to its place and renames
// it when fill succeeded, so that a directory that exists is complete.
func buildDir(dir string, fill func(tmp string) error) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(parent, ".making-"+filepath.Base(dir))
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.Rename(tmp, dir)
}
