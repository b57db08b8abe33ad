// Package history reads the versions of keys that an etcd still has: a running one, through
// etcd's client, or the file of a snapshot, through bbolt and etcd's own encoding. Nothing here
// writes.
//
// etcd keeps every version of a key until a compaction removes it. A compaction at revision R
// keeps, of each key, the version that was current at R, so that what was deleted after R is
// readable. The API server compacts every five minutes what was current five minutes ago
// (k8s.io/apiserver/pkg/storage/etcd3/compact.go): five to ten minutes are always there. A
// snapshot has the history of its moment.
package history

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Bounds are the revisions that a store can be read at, both inclusive.
type Bounds struct {
	// Oldest is the revision of the last compaction, or 1.
	Oldest int64 `json:"oldestRevision"`
	// Newest is the revision of the last change.
	Newest int64 `json:"newestRevision"`
}

// Deletion is the removal of a key.
type Deletion struct {
	Key string
	// Revision is that of the removal.
	Revision int64
	// Last is the version before it; nil when a compaction removed it.
	Last *mvccpb.KeyValue
}

// Reader reads versions. Errors that wrap ErrCompacted say that a compaction was faster.
type Reader interface {
	// Bounds returns the readable revisions, as they were when the reader was opened.
	Bounds() Bounds
	// Deletions visits the removals of keys with the prefix, the oldest first.
	Deletions(ctx context.Context, prefix string, visit func(Deletion) error) error
	// Get returns the version of a key that was current at a revision; nil if there was none.
	Get(ctx context.Context, key string, revision int64) (*mvccpb.KeyValue, error)
	// List visits the keys with the prefix and their versions at a revision, sorted by key.
	List(ctx context.Context, prefix string, revision int64, visit func(*mvccpb.KeyValue) error) error
}

// ErrCompacted says that a version is no longer in the history.
var ErrCompacted = errors.New("no longer in etcd's history: compacted")

// CompactedError names the revision that was read and the oldest that can be.
type CompactedError struct {
	Revision, Oldest int64
}

// Error names both revisions.
func (e *CompactedError) Error() string {
	if e.Oldest == 0 {
		return fmt.Sprintf("revision %d is %v", e.Revision, ErrCompacted)
	}
	return fmt.Sprintf("revision %d is %v; the oldest readable revision is %d", e.Revision, ErrCompacted, e.Oldest)
}

// Unwrap is ErrCompacted.
func (e *CompactedError) Unwrap() error { return ErrCompacted }

// CheckRevision refuses a revision outside the bounds.
func (b Bounds) CheckRevision(revision int64) error {
	switch {
	case revision < b.Oldest:
		return &CompactedError{Revision: revision, Oldest: b.Oldest}
	case revision > b.Newest:
		return fmt.Errorf("revision %d is in the future: the newest is %d", revision, b.Newest)
	}
	return nil
}

// LastVersion returns the newest version of a key, not newer than from, that accept accepts, and
// the oldest of the versions after it that accept rejected (from itself at most). It returns nil
// when the key did not exist before, and ErrCompacted when the history ends before that is known.
func LastVersion(ctx context.Context, r Reader, from *mvccpb.KeyValue, accept func(*mvccpb.KeyValue) bool) (accepted, rejected *mvccpb.KeyValue, err error) {
	for kv := from; kv != nil; {
		if accept(kv) {
			return kv, rejected, nil
		}
		rejected = kv
		if kv.ModRevision == kv.CreateRevision {
			return nil, rejected, nil
		}
		if kv, err = r.Get(ctx, string(kv.Key), kv.ModRevision-1); err != nil {
			return nil, rejected, err
		}
	}
	return nil, rejected, nil
}
