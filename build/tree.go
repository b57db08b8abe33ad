package build

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Tree names a prepared source tree of an upstream version.
type Tree string

const (
	// Stock is upstream's source with the pinned go.mod and nothing else changed.
	Stock Tree = "stock"
	// Guarded is Stock with the guard package, the patches and the in-tree tests.
	Guarded Tree = "guarded"
	// tested has the same files as Guarded. Tests take minutes; in a tree of their own
	// they are not mixed up with what a build brings up to date meanwhile.
	tested Tree = "tested"
)

// treeStamp is written beside a tree when it is complete.
type treeStamp struct {
	// Base identifies the archive and the pinned go.mod.
	Base string `json:"base"`
	// Overlay identifies the guard package, the patches and the tests.
	Overlay string `json:"overlay,omitempty"`
	// Files are the paths in which the tree differs from Stock.
	Files []string `json:"files,omitempty"`
	// Listing identifies names, sizes and times of all files, so that a tree that
	// was changed by hand is made again.
	Listing string `json:"listing"`
}

// TreeDir returns the directory of a prepared tree.
func (r Repo) TreeDir(u Upstream, t Tree) string {
	return r.path("_output", "src", u.Version, string(t))
}

func (r Repo) stampFile(u Upstream, t Tree) string {
	return r.TreeDir(u, t) + ".json"
}

// Prepare brings a prepared tree up to date and returns its directory. When
// nothing changed it only looks at the files; when the guard package or the
// patches changed it writes only the files that differ, so that the go command
// builds only what depends on them. Concurrent calls for one tree wait for each
// other. Progress is written to out.
func (r Repo) Prepare(ctx context.Context, u Upstream, t Tree, out io.Writer) (string, error) {
	dir, release, err := r.hold(ctx, u, t, out)
	if err != nil {
		return "", err
	}
	release()
	return dir, nil
}

// hold is Prepare for callers that need the tree to stay as it is until they call
// release. The stock tree is not held: it only changes with the pin.
func (r Repo) hold(ctx context.Context, u Upstream, t Tree, out io.Writer) (dir string, release func(), err error) {
	dir = r.TreeDir(u, t)
	base, err := r.baseFingerprint(u)
	if err != nil {
		return "", nil, err
	}
	unlock, err := lockFile(ctx, r.TreeDir(u, Stock)+".lock", out)
	if err != nil {
		return "", nil, err
	}
	err = r.prepareBase(ctx, u, Stock, base, out)
	unlock()
	if err != nil {
		return "", nil, err
	}
	if t == Stock {
		return dir, func() {}, nil
	}
	unlock, err = lockFile(ctx, dir+".lock", out)
	if err != nil {
		return "", nil, err
	}
	if err := r.prepareGuarded(ctx, u, t, base, out); err != nil {
		unlock()
		return "", nil, err
	}
	return dir, unlock, nil
}

// prepareBase makes a tree of upstream's files, unless a complete one is there.
func (r Repo) prepareBase(ctx context.Context, u Upstream, t Tree, base string, out io.Writer) error {
	dir := r.TreeDir(u, t)
	if stamp, err := readStamp(r.stampFile(u, t)); err != nil {
		return err
	} else if stamp.Base == base {
		if listing, err := listingOf(dir); err == nil && listing == stamp.Listing {
			return nil
		}
		fmt.Fprintf(out, "%s was changed by hand or by a test; making it again\n", r.rel(dir))
	}
	fmt.Fprintf(out, "Making the %s tree of %s in %s\n", t, u.Version, r.rel(dir))
	if err := r.dropStamp(u, t); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := buildDir(dir, func(tmp string) error { return r.writeBase(ctx, u, tmp) }); err != nil {
		return err
	}
	return r.writeStamp(u, t, treeStamp{Base: base})
}

func (r Repo) prepareGuarded(ctx context.Context, u Upstream, t Tree, base string, out io.Writer) error {
	dir := r.TreeDir(u, t)
	series, err := LoadSeries(r.patchDir(u))
	if err != nil {
		return err
	}
	added, err := r.addedFiles(u)
	if err != nil {
		return err
	}
	overlay := overlayFingerprint(series, added)

	stamp, err := readStamp(r.stampFile(u, t))
	if err != nil {
		return err
	}
	if stamp.Base == base && stamp.Overlay == overlay {
		if listing, err := listingOf(dir); err == nil && listing == stamp.Listing {
			return nil
		}
	}
	want, err := r.overlay(ctx, u, series, added)
	if err != nil {
		return err
	}
	// Files of the last overlay are put right below; everything else must be as it
	// was left, or the tree starts again from upstream's files.
	intact := false
	if stamp.Base == base {
		listing, err := listingOf(dir)
		intact = err == nil && listing == stamp.Listing
	}
	if err := r.dropStamp(u, t); err != nil {
		return err
	}
	if !intact {
		if err := r.prepareBase(ctx, u, t, base, out); err != nil {
			return err
		}
		if err := r.dropStamp(u, t); err != nil {
			return err
		}
		stamp.Files = nil
	}
	changed := 0
	var files []string
	for name, data := range want {
		files = append(files, name)
		wrote, err := writeFile(filepath.Join(dir, filepath.FromSlash(name)), data, 0o644)
		if err != nil {
			return err
		}
		if wrote {
			changed++
		}
	}
	for _, name := range stamp.Files {
		if _, still := want[name]; still {
			continue
		}
		changed++
		if err := restoreFile(filepath.Join(r.TreeDir(u, Stock), filepath.FromSlash(name)), filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			return err
		}
	}
	sort.Strings(files)
	fmt.Fprintf(out, "The %s tree of %s: %d patches, %d added files; %d files written\n", t, u.Version, len(series.Patches), len(added), changed)
	return r.writeStamp(u, t, treeStamp{Base: base, Overlay: overlay, Files: files})
}

// restoreFile gives a file of the guarded tree the stock content, or removes it
// when the stock tree has none.
func restoreFile(stock, guarded string) error {
	data, err := os.ReadFile(stock)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(guarded); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// A package directory without files would still match ./... patterns.
		_ = os.Remove(filepath.Dir(guarded))
		return nil
	}
	if err != nil {
		return err
	}
	_, err = writeFile(guarded, data, 0o644)
	return err
}

// overlay returns the files in which the guarded tree differs from the stock tree,
// with their content. The patches are applied to copies of the touched files only,
// with git apply and no fuzz.
func (r Repo) overlay(ctx context.Context, u Upstream, series Series, added map[string][]byte) (map[string][]byte, error) {
	stock := r.TreeDir(u, Stock)
	for name := range added {
		if _, err := os.Lstat(filepath.Join(stock, filepath.FromSlash(name))); err == nil {
			return nil, fmt.Errorf("%s exists in %s too; added files must be new, a change of an upstream file is a patch", name, u.Version)
		}
	}
	want := map[string][]byte{}
	if len(series.Patches) > 0 {
		tmp, err := os.MkdirTemp("", "guard-overlay-*")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		for _, name := range series.touched() {
			if _, err := copyIfExists(filepath.Join(stock, filepath.FromSlash(name)), filepath.Join(tmp, filepath.FromSlash(name))); err != nil {
				return nil, err
			}
		}
		// In a repository of its own: inside another one, git apply skips paths that
		// are not below the current directory.
		g := gitTree{dir: tmp}
		if _, err := g.run(ctx, "init", "-q"); err != nil {
			return nil, err
		}
		for _, p := range series.Patches {
			if _, err := g.raw(ctx, p.Data, "apply", "--whitespace=nowarn"); err != nil {
				return nil, fmt.Errorf("%s/%s does not apply to %s: %w", r.rel(series.Dir), p.Name, u.Version, err)
			}
		}
		for _, name := range series.touched() {
			data, err := os.ReadFile(filepath.Join(tmp, filepath.FromSlash(name)))
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%s: the series removes %s; hooks do not remove files", r.rel(series.Dir), name)
			}
			if err != nil {
				return nil, err
			}
			want[name] = data
		}
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

func copyIfExists(from, to string) (bool, error) {
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, err
	}
	return true, copyFile(from, to)
}

// buildDir makes a directory under a temporary name beside its place and renames
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

// listingOf hashes paths, sizes and modification times of all files below dir.
func listingOf(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %d %d\n", strings.TrimPrefix(path, dir), info.Size(), info.ModTime().UnixNano())
		return nil
	})
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func readStamp(file string) (treeStamp, error) {
	var s treeStamp
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		// A stamp that cannot be read vouches for nothing.
		return treeStamp{}, nil
	}
	return s, nil
}

func (r Repo) dropStamp(u Upstream, t Tree) error {
	err := os.Remove(r.stampFile(u, t))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (r Repo) writeStamp(u Upstream, t Tree, s treeStamp) error {
	listing, err := listingOf(r.TreeDir(u, t))
	if err != nil {
		return err
	}
	s.Listing = listing
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	_, err = writeFile(r.stampFile(u, t), data, 0o644)
	return err
}

// lockFile takes an exclusive lock that the kernel gives back when the process
// ends, however it ends. While another process has it, that is said once on out.
func lockFile(ctx context.Context, path string, out io.Writer) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	// Asked for again and again, because a flock that waits cannot be interrupted.
	const interval = 200 * time.Millisecond
	for said := false; ; said = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !said {
			fmt.Fprintf(out, "Waiting for another run that uses %s\n", strings.TrimSuffix(path, ".lock"))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(interval):
		}
	}
}
