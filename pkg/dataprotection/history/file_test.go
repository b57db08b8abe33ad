package history

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"
)

// change is one of a key; an empty value deletes it.
type change struct{ key, value string }

// snapshotOf is a snapshot of a store that was changed so, starting at revision 2, and compacted at a
// revision without that anything is removed.
func snapshotOf(t *testing.T, compacted int64, changes ...change) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket(schema.Key.Name())
		require.NoError(t, err)
		created := map[string]int64{}
		for i, c := range changes {
			revision := int64(i + 2)
			kv := mvccpb.KeyValue{Key: []byte(c.key)}
			at := mvcc.RevToBytes(mvcc.Revision{Main: revision}, mvcc.NewRevBytes())
			if c.value == "" {
				at = append(at, 't')
				delete(created, c.key)
			} else {
				if created[c.key] == 0 {
					created[c.key] = revision
				}
				kv.Value, kv.ModRevision, kv.CreateRevision = []byte(c.value), revision, created[c.key]
			}
			value, err := proto.Marshal(&kv)
			require.NoError(t, err)
			require.NoError(t, bucket.Put(at, value))
		}
		meta, err := tx.CreateBucket(schema.Meta.Name())
		require.NoError(t, err)
		return meta.Put(schema.ScheduledCompactKeyName, mvcc.RevToBytes(mvcc.Revision{Main: compacted}, mvcc.NewRevBytes()))
	}))
	require.NoError(t, db.Close())
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	hash := sha256.Sum256(content)
	require.NoError(t, os.WriteFile(path, append(content, hash[:]...), 0o600))
	return path
}

func open(t *testing.T, path string) *File {
	t.Helper()
	f, err := OpenFile(path, false)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestASnapshotHasItsHistory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// Revisions 2 to 9.
	f := open(t, snapshotOf(t, 3,
		change{"/registry/a", "1"}, change{"/registry/a", "2"}, change{"/registry/b", "1"}, change{"/registry/a", ""},
		change{"/other/c", "1"}, change{"/registry/a", "3"}, change{"/registry/b", ""}, change{"/registry/a", "4"}))
	require.Equal(t, Bounds{Oldest: 3, Newest: 9}, f.Bounds())

	var deleted []string
	require.NoError(t, f.Deletions(ctx, "/registry/", func(d Deletion) error {
		deleted = append(deleted, d.Key+"="+string(d.Last.Value))
		return nil
	}))
	require.Equal(t, []string{"/registry/a=2", "/registry/b=1"}, deleted)

	list := func(revision int64) (all string) {
		require.NoError(t, f.List(ctx, "/registry/", revision, func(kv *mvccpb.KeyValue) error {
			all += string(kv.Key[len("/registry/"):]) + string(kv.Value) + " "
			return nil
		}))
		return all
	}
	require.Equal(t, "a2 ", list(3))
	require.Equal(t, "a2 b1 ", list(4))
	require.Equal(t, "b1 ", list(5))
	require.Equal(t, "a4 ", list(9))

	for revision, want := range map[int64]string{3: "2", 4: "2", 5: "", 6: "", 7: "3", 9: "4"} {
		kv, err := f.Get(ctx, "/registry/a", revision)
		require.NoError(t, err)
		require.Equal(t, want, valueOf(kv), "revision %d", revision)
	}
	_, err := f.Get(ctx, "/registry/a", 2)
	require.ErrorIs(t, err, ErrCompacted)
	_, err = f.Get(ctx, "/registry/a", 10)
	require.ErrorContains(t, err, "in the future")

	last, err := f.Get(ctx, "/registry/a", 9)
	require.NoError(t, err)
	is := func(value string) func(*mvccpb.KeyValue) bool {
		return func(kv *mvccpb.KeyValue) bool { return string(kv.Value) == value }
	}
	accepted, rejected, err := LastVersion(ctx, f, last, is("3"))
	require.NoError(t, err)
	require.Equal(t, "3", string(accepted.Value))
	require.Equal(t, "4", string(rejected.Value))
	accepted, _, err = LastVersion(ctx, f, last, is("2"))
	require.NoError(t, err)
	require.Nil(t, accepted, "another life of the key is not a version of it")
	last, err = f.Get(ctx, "/registry/a", 4)
	require.NoError(t, err)
	_, _, err = LastVersion(ctx, f, last, is("1"))
	require.ErrorIs(t, err, ErrCompacted)
}

func TestADamagedFileIsRefused(t *testing.T) {
	t.Parallel()
	path := snapshotOf(t, 1, change{"/registry/a", "1"})
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = OpenFile(path, false)
	require.NoError(t, err)
	write := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	flipped := append([]byte(nil), content...)
	flipped[len(flipped)/2] ^= 1
	for _, test := range []struct {
		name    string
		content []byte
		skip    bool
		words   string
	}{
		{"truncated", content[:len(content)/2+1], false, "truncated"},
		{"truncated, the checksum skipped", content[:len(content)/4], true, ErrNoSnapshot.Error()},
		{"a flipped bit", flipped, false, "checksum does not match"},
		{"text", []byte("text"), true, ErrNoSnapshot.Error()},
		{"empty", nil, true, ErrNoSnapshot.Error()},
	} {
		_, err := OpenFile(write(test.content), test.skip)
		require.ErrorIs(t, err, ErrNoSnapshot, test.name)
		require.ErrorContains(t, err, test.words, test.name)
	}
	f, err := OpenFile(write(content[:len(content)-sha256.Size]), true)
	require.NoError(t, err, "a copy of a member's file")
	require.Equal(t, []string{"/registry/a"}, f.Keys())
	require.NoError(t, f.Close())
	_, err = OpenFile(filepath.Join(t.TempDir(), "absent"), false)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = OpenFile(t.TempDir(), false)
	require.ErrorContains(t, err, "is not a file")
}

func valueOf(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return ""
	}
	return string(kv.Value)
}
