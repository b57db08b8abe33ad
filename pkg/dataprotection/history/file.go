package history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"
)

// lockTimeout is how long to wait for the lock of a file: etcd never gives up that of its own.
const lockTimeout = time.Second

// ErrNoSnapshot says that a file is not a complete snapshot of etcd.
var ErrNoSnapshot = errors.New("not a complete snapshot of etcd")

// File is a snapshot of etcd: the file that etcdctl snapshot save writes, or the db file of a
// stopped member. The file is never written.
type File struct {
	path   string
	db     *bolt.DB
	bounds Bounds
	// versions of each key, the oldest first.
	versions map[string][]version
	// keys are sorted.
	keys []string
}

type version struct {
	revision mvcc.Revision
	deleted  bool
}

// OpenFile checks a snapshot and reads which versions it has. A file without the checksum that
// etcdctl appends is refused unless skipHashCheck is set, as etcdutl does.
func OpenFile(path string, skipHashCheck bool) (*File, error) {
	size, err := checkHash(path, skipHashCheck)
	if err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: another process has it open; if that is etcd, save a snapshot with etcdctl snapshot save and read that", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrNoSnapshot, err)
	}
	f := &File{path: path, db: db, versions: map[string][]version{}}
	if err := f.readVersions(size); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return f, nil
}

// checkHash returns the size of the database in the file. A snapshot is a database, whose size
// is a multiple of 512, with its SHA-256 appended (etcdutl/snapshot/v3_snapshot.go: hasChecksum).
func checkHash(path string, skip bool) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a file", path)
	}
	size := info.Size()
	if size == 0 {
		return 0, fmt.Errorf("%s: %w: it is empty", path, ErrNoSnapshot)
	}
	if size%512 != sha256.Size {
		if skip {
			return size, nil
		}
		return 0, fmt.Errorf("%s: %w: it does not end with a checksum, so it is truncated, or was copied from a member's folder; for such a copy use --skip-hash-check", path, ErrNoSnapshot)
	}
	size -= sha256.Size
	if skip {
		return size, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, io.LimitReader(file, size)); err != nil {
		return 0, err
	}
	want := make([]byte, sha256.Size)
	if _, err := file.ReadAt(want, size); err != nil {
		return 0, err
	}
	if !bytes.Equal(hash.Sum(nil), want) {
		return 0, fmt.Errorf("%s: %w: its checksum does not match its content", path, ErrNoSnapshot)
	}
	return size, nil
}

// readVersions fills the index. Memory: about 100 bytes per version.
func (f *File) readVersions(size int64) (err error) {
	defer f.recoverDamage(&err)()
	return f.db.View(func(tx *bolt.Tx) error {
		if tx.Size() > size {
			return fmt.Errorf("%w: the database has %d bytes, the file only %d", ErrNoSnapshot, tx.Size(), size)
		}
		bucket := tx.Bucket(schema.Key.Name())
		if bucket == nil {
			return fmt.Errorf("%w: it is a bbolt database without keys", ErrNoSnapshot)
		}
		f.bounds = Bounds{Oldest: 1, Newest: 1}
		if meta := tx.Bucket(schema.Meta.Name()); meta != nil {
			// Scheduled, not finished: the versions may be partly removed already.
			if revision := meta.Get(schema.ScheduledCompactKeyName); revision != nil {
				f.bounds.Oldest = max(1, mvcc.BytesToRev(revision).Main)
			}
		}
		err := bucket.ForEach(func(k, v []byte) error {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(v, &kv); err != nil {
				return fmt.Errorf("%w: the version at %x: %w", ErrNoSnapshot, k, err)
			}
			revision := mvcc.BytesToRev(k)
			f.versions[string(kv.Key)] = append(f.versions[string(kv.Key)], version{revision, mvcc.IsTombstone(k)})
			f.bounds.Newest = max(f.bounds.Newest, revision.Main)
			return nil
		})
		for key := range f.versions {
			f.keys = append(f.keys, key)
		}
		slices.Sort(f.keys)
		f.bounds.Newest = max(f.bounds.Newest, f.bounds.Oldest)
		return err
	})
}

// recoverDamage makes errors of panics, and of pages that the file lacks: bbolt checks neither
// when it reads.
func (f *File) recoverDamage(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if cause := recover(); cause != nil {
			*err = fmt.Errorf("%s: %w: %v", f.path, ErrNoSnapshot, cause)
		}
	}
}

// Close releases the file.
func (f *File) Close() error { return f.db.Close() }

// Bounds is part of Reader.
func (f *File) Bounds() Bounds { return f.bounds }

// Keys returns all keys of which there is a version, sorted, other prefixes included.
func (f *File) Keys() []string { return f.keys }

// Deletions is part of Reader.
func (f *File) Deletions(ctx context.Context, prefix string, visit func(Deletion) error) error {
	type removal struct {
		key  string
		at   mvcc.Revision
		last *version
	}
	var removals []removal
	for _, key := range f.withPrefix(prefix) {
		versions := f.versions[key]
		for i, v := range versions {
			if !v.deleted || v.revision.Main <= f.bounds.Oldest {
				continue
			}
			r := removal{key: key, at: v.revision}
			if i > 0 && !versions[i-1].deleted {
				r.last = &versions[i-1]
			}
			removals = append(removals, r)
		}
	}
	slices.SortFunc(removals, func(a, b removal) int {
		if a.at.GreaterThan(b.at) {
			return 1
		}
		return -1
	})
	for _, r := range removals {
		deletion := Deletion{Key: r.key, Revision: r.at.Main}
		if r.last != nil {
			var err error
			if deletion.Last, err = f.read(*r.last); err != nil {
				return err
			}
		}
		if err := errors.Join(ctx.Err(), visit(deletion)); err != nil {
			return err
		}
	}
	return nil
}

// Get is part of Reader.
func (f *File) Get(_ context.Context, key string, revision int64) (*mvccpb.KeyValue, error) {
	if err := f.bounds.CheckRevision(revision); err != nil {
		return nil, fmt.Errorf("%s: reading %s: %w", f.path, key, err)
	}
	v := f.at(key, revision)
	if v == nil {
		return nil, nil
	}
	return f.read(*v)
}

// List is part of Reader.
func (f *File) List(ctx context.Context, prefix string, revision int64, visit func(*mvccpb.KeyValue) error) error {
	if err := f.bounds.CheckRevision(revision); err != nil {
		return fmt.Errorf("%s: reading %s: %w", f.path, prefix, err)
	}
	for _, key := range f.withPrefix(prefix) {
		v := f.at(key, revision)
		if v == nil {
			continue
		}
		kv, err := f.read(*v)
		if err == nil {
			err = errors.Join(ctx.Err(), visit(kv))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *File) withPrefix(prefix string) []string {
	start := sort.SearchStrings(f.keys, prefix)
	end := start + sort.Search(len(f.keys)-start, func(i int) bool { return !strings.HasPrefix(f.keys[start+i], prefix) })
	return f.keys[start:end]
}

// at returns the version that was current at a revision, or nil.
func (f *File) at(key string, revision int64) *version {
	versions := f.versions[key]
	i := sort.Search(len(versions), func(i int) bool { return versions[i].revision.Main > revision })
	if i == 0 || versions[i-1].deleted {
		return nil
	}
	return &versions[i-1]
}

func (f *File) read(v version) (kv *mvccpb.KeyValue, err error) {
	defer f.recoverDamage(&err)()
	err = f.db.View(func(tx *bolt.Tx) error {
		value := tx.Bucket(schema.Key.Name()).Get(mvcc.RevToBytes(v.revision, mvcc.NewRevBytes()))
		if value == nil {
			return fmt.Errorf("%s: %w: the version of revision %d is missing", f.path, ErrNoSnapshot, v.revision.Main)
		}
		kv = &mvccpb.KeyValue{}
		// Unmarshal copies what it keeps.
		return proto.Unmarshal(value, kv)
	})
	return kv, err
}
