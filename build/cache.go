package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/dirhash"
)

const (
	// CacheVariable is the environment variable that names the cache folder. The value
	// off keeps everything inside the checkout and runs every test again.
	CacheVariable = "KUBELET_GUARD_CACHE"
	cacheOff      = "off"

	// cacheLimit is the size in bytes to which old entries are removed, cacheAge how long
	// an entry is kept that nobody uses.
	cacheLimit = 12 << 30
	cacheAge   = 14 * 24 * time.Hour
)

// cacheTime is the modification time of every file and folder in an entry. The go command
// takes a file with the same path, size and time for the same file, and the path of an
// entry stands for its content.
var cacheTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// cache is a folder with entries that do not change: what is made from the same inputs has
// the same path in every checkout. An entry is <kind>/<key>, with its content and, in
// the file sum, the checksum and the size of that. All users share a lock on the folder; a
// process that gets it exclusively removes old entries.
type cache struct {
	dir   string
	limit int64
}

// cacheDir returns the folder that the environment names, or kubelet-guard in the user's
// cache folder; empty when it is switched off.
func cacheDir() (string, error) {
	switch dir := os.Getenv(CacheVariable); dir {
	case cacheOff:
		return "", nil
	case "":
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("%w; or set %s to a folder, or to %s", err, CacheVariable, cacheOff)
		}
		return filepath.Join(user, "kubelet-guard"), nil
	default:
		if !filepath.IsAbs(dir) {
			return "", fmt.Errorf("%s: %q is neither an absolute path nor %s", CacheVariable, dir, cacheOff)
		}
		return filepath.Clean(dir), nil
	}
}

// cache returns the cache of the checkout.
func (r Repo) cache() cache {
	if r.Cache == "" {
		return cache{r.path("_output", "cache"), cacheLimit}
	}
	return cache{r.Cache, cacheLimit}
}

// contentOf is the folder of an entry's content.
func (c cache) contentOf(kind, key string) string {
	return filepath.Join(c.dir, kind, key, "content")
}

// hold returns the folder with the content of an entry, which nobody removes before
// release is called. An entry that is absent or damaged is made by fill, in a folder
// next to its place: concurrent calls may both make it, and the first one wins.
func (c cache) hold(ctx context.Context, kind, key string, out io.Writer, fill func(dir string) error) (dir string, release func(), err error) {
	release, err = c.share(ctx)
	if err != nil {
		return "", nil, err
	}
	if err := c.bring(filepath.Join(c.dir, kind, key), out, fill); err != nil {
		release()
		return "", nil, err
	}
	return c.contentOf(kind, key), release, nil
}

// take copies a file of an entry to a path that does not exist, as a program. An entry that
// is absent or damaged is no error: there is no file then.
func (c cache) take(ctx context.Context, kind, key, name, to string, out io.Writer) error {
	release, err := c.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	place := filepath.Join(c.dir, kind, key)
	switch err := checkEntry(place); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		fmt.Fprintf(out, "%s is damaged: %v\n", place, err)
		return nil
	}
	err = replaceFile(to, func(tmp string) error { return copyFile(filepath.Join(place, "content", name), tmp, 0o755) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Another run is just replacing the entry.
	}
	if err != nil {
		return err
	}
	return use(place)
}

// put makes an entry, in the place of the one that may be there.
func (c cache) put(ctx context.Context, kind, key string, out io.Writer, fill func(dir string) error) error {
	release, err := c.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	return makeEntry(filepath.Join(c.dir, kind, key), true, fill)
}

// use records that an entry is used.
func use(place string) error {
	now := time.Now()
	if err := os.Chtimes(filepath.Join(place, "sum"), now, now); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// bring makes an entry that is absent or damaged.
func (c cache) bring(place string, out io.Writer, fill func(dir string) error) error {
	switch err := checkEntry(place); {
	case err == nil:
		return use(place)
	case !errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(out, "%s is damaged and made again: %v\n", place, err)
	}
	return makeEntry(place, false, fill)
}

// makeEntry makes an entry in a folder next to its place, and moves it there: to the place of
// a damaged entry, or of any that is there when replace is set.
func makeEntry(place string, replace bool, fill func(dir string) error) error {
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(place), ".making-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	made, content := filepath.Join(tmp, "new"), filepath.Join(tmp, "new", "content")
	if err := os.MkdirAll(content, 0o755); err != nil {
		return err
	}
	if err := fill(content); err != nil {
		return err
	}
	size, err := settle(content)
	if err != nil {
		return err
	}
	sum, err := dirhash.HashDir(content, "", dirhash.Hash1)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(made, "sum"), fmt.Appendf(nil, "%s %d\n", sum, size), 0o644); err != nil {
		return err
	}
	// Other runs may do the same meanwhile.
	for n := 0; ; n++ {
		if err := os.Rename(made, place); err == nil || n == 10 {
			return err
		}
		if !replace && checkEntry(place) == nil {
			return nil
		}
		old := filepath.Join(tmp, fmt.Sprint("old", n))
		if err := os.Rename(place, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// checkEntry compares the content of an entry with its checksum. For an entry that is not
// there the error is fs.ErrNotExist.
func checkEntry(place string) error {
	if _, err := os.Stat(place); err != nil {
		return err
	}
	sum, _, err := readSum(place)
	if err != nil {
		return err
	}
	have, err := dirhash.HashDir(filepath.Join(place, "content"), "", dirhash.Hash1)
	if err != nil {
		return errors.New(err.Error())
	}
	if have != sum {
		return fmt.Errorf("its files have the checksum %s, not %s", have, sum)
	}
	return nil
}

// readSum returns checksum and size of an entry. It never returns fs.ErrNotExist.
func readSum(place string) (sum string, size int64, err error) {
	data, err := os.ReadFile(filepath.Join(place, "sum"))
	if err != nil {
		return "", 0, errors.New(err.Error())
	}
	if _, err := fmt.Sscanf(string(data), "%s %d\n", &sum, &size); err != nil {
		return "", 0, fmt.Errorf("its checksum cannot be read: %w", err)
	}
	return sum, size, nil
}

// settle makes all files read-only, gives files and folders below dir and dir itself their
// time, and returns the size of all files.
func settle(dir string) (size int64, err error) {
	var folders []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			folders = append(folders, path)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		if mode := info.Mode().Perm() &^ 0o222; mode != info.Mode().Perm() {
			if err := os.Chmod(path, mode); err != nil {
				return err
			}
		}
		if info.ModTime().Equal(cacheTime) {
			return nil
		}
		return os.Chtimes(path, cacheTime, cacheTime)
	})
	for _, folder := range slices.Backward(folders) {
		err = errors.Join(err, os.Chtimes(folder, cacheTime, cacheTime))
	}
	return size, err
}

// share takes the lock of the cache together with all other users. When there is none,
// it removes old entries first.
func (c cache) share(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		if err := c.prune(time.Now()); err != nil {
			lock.Close()
			return nil, fmt.Errorf("remove old entries of %s: %w", c.dir, err)
		}
	}
	if err := flock(ctx, lock, syscall.LOCK_SH, nil); err != nil {
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// prune removes what killed runs left, entries that were not used for long, and then those
// used longest ago until the rest is small enough. The caller has the lock
// exclusively.
func (c cache) prune(now time.Time) error {
	type entry struct {
		place string
		used  time.Time
		size  int64
	}
	places, err := filepath.Glob(filepath.Join(c.dir, "*", "*"))
	if err != nil {
		return err
	}
	var entries []entry
	var total int64
	for _, place := range places {
		_, size, err := readSum(place)
		info, statErr := os.Stat(filepath.Join(place, "sum"))
		if strings.HasPrefix(filepath.Base(place), ".") || err != nil || statErr != nil || now.Sub(info.ModTime()) > cacheAge {
			if err := os.RemoveAll(place); err != nil {
				return err
			}
			continue
		}
		entries = append(entries, entry{place, info.ModTime(), size})
		total += size
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	for _, e := range entries {
		if total <= c.limit {
			break
		}
		if err := os.RemoveAll(e.place); err != nil {
			return err
		}
		total -= e.size
	}
	return nil
}

// flock takes a lock that the kernel releases when the process ends, and closes the file
// on an error. While another process has the lock, waiting is called once.
func flock(ctx context.Context, f *os.File, how int, waiting func()) error {
	// Poll, because a blocking flock cannot be interrupted.
	const interval = 200 * time.Millisecond
	for first := true; ; first = false {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if first && waiting != nil {
			waiting()
		}
		select {
		case <-ctx.Done():
			f.Close()
			return ctx.Err()
		case <-time.After(interval):
		}
	}
}
