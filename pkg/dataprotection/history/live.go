package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// pageSize bounds one response of a list: 500 values of at most 1.5 MiB, usually of 2 kB.
	pageSize = 500
	// progressInterval is how often a watch requests its progress, which shows that it is
	// complete when the last change of the store was not under its prefix.
	progressInterval = 50 * time.Millisecond
	// openTimeout is how long the first response may take: a store that is reachable
	// responds within milliseconds, or within an election.
	openTimeout = 15 * time.Second
)

// ErrNotEtcd says that the store speaks etcd's protocol, but is not etcd.
var ErrNotEtcd = errors.New("the store is not etcd")

// Live is a running etcd.
type Live struct {
	client *clientv3.Client
	bounds Bounds
	// Gap has the revisions that a compaction removed while Deletions read them; zero
	// without one. Deletions in it may be missing.
	Gap Bounds
}

// OpenLive reads the bounds of a running etcd. prefix must be one that the client may read.
// Errors name permissions, and stores that only imitate etcd (ErrNotEtcd).
func OpenLive(ctx context.Context, client *clientv3.Client, prefix string) (*Live, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, fmt.Errorf("no response within %s", openTimeout))
	defer cancel()
	response, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, Describe(ctx, client, "reading "+prefix, err)
	}
	if response.Header.ClusterId == 0 && response.Header.MemberId == 0 {
		return nil, fmt.Errorf("%w: its responses have neither a cluster nor a member ID, as those of Kine, which keeps no history that this program could read", ErrNotEtcd)
	}
	l := &Live{client: client, bounds: Bounds{Oldest: 1, Newest: response.Header.Revision}}
	// A watch from the start is refused with the revision of the last compaction. The key is
	// never written, so that nothing else comes.
	err = l.watch(ctx, prefix+"guard-etcd/none", 1, nil)
	var compacted *CompactedError
	if errors.As(err, &compacted) {
		l.bounds.Oldest = compacted.Oldest
		err = nil
	}
	if err != nil {
		return nil, Describe(ctx, client, "watching "+prefix, err)
	}
	return l, nil
}

// Bounds is part of Reader.
func (l *Live) Bounds() Bounds { return l.bounds }

// Deletions is part of Reader. A compaction in the middle does not end it: what is left is
// read, and Gap names what is not.
func (l *Live) Deletions(ctx context.Context, prefix string, visit func(Deletion) error) error {
	start := l.bounds.Oldest + 1
	for {
		last := start - 1
		var batch []Deletion
		err := l.watch(ctx, prefix, start, func(event *clientv3.Event) error {
			last = event.Kv.ModRevision
			batch = append(batch, Deletion{Key: string(event.Kv.Key), Revision: last})
			if len(batch) < readBatch {
				return nil
			}
			full := batch
			batch = nil
			return l.visitLast(ctx, full, visit)
		}, clientv3.WithPrefix(), clientv3.WithFilterPut())
		if err == nil || errors.Is(err, ErrCompacted) {
			err = cmp.Or(l.visitLast(ctx, batch, visit), err)
		}
		var compacted *CompactedError
		if !errors.As(err, &compacted) || compacted.Oldest < start {
			return Describe(ctx, l.client, "watching "+prefix, err)
		}
		if l.Gap.Oldest == 0 {
			l.Gap.Oldest = last + 1
		}
		l.Gap.Newest = compacted.Oldest
		l.bounds.Oldest = compacted.Oldest
		if start = compacted.Oldest + 1; start > l.bounds.Newest {
			return nil
		}
	}
}

// visitLast reads what the keys held before their deletion, and visits them. The watch could send
// it (clientv3.WithPrevKV), but all of a thousand revisions in one response, which etcd would hold
// in memory as well.
func (l *Live) visitLast(ctx context.Context, batch []Deletion, visit func(Deletion) error) error {
	if len(batch) == 0 {
		return nil
	}
	operations := make([]clientv3.Op, len(batch))
	for i, d := range batch {
		operations[i] = clientv3.OpGet(d.Key, clientv3.WithRev(d.Revision-1))
	}
	response, err := l.client.Txn(ctx).Then(operations...).Commit()
	if errors.Is(err, rpctypes.ErrCompacted) && len(batch) > 1 {
		// Not all of them may be compacted.
		for i := range batch {
			if err := l.visitLast(ctx, batch[i:i+1], visit); err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return Describe(ctx, l.client, "reading "+batch[0].Key, err)
	}
	for i, d := range batch {
		if err == nil {
			if kvs := response.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
				d.Last = kvs[0]
			}
		}
		if err := visit(d); err != nil {
			return err
		}
	}
	return nil
}

// watch visits the events from a revision to the newest of the bounds.
func (l *Live) watch(ctx context.Context, key string, start int64, visit func(*clientv3.Event) error, options ...clientv3.OpOption) error {
	if start > l.bounds.Newest {
		return nil
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// Its own stream: on a common one, the response to a request for progress of the watch before
	// can come after this one was created, and would end it before its events.
	watcher := clientv3.NewWatcher(l.client)
	defer watcher.Close()
	responses := watcher.Watch(ctx, key, append(options, clientv3.WithRev(start))...)
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-progress.C:
			if err := watcher.RequestProgress(ctx); err != nil {
				return err
			}
		case response, open := <-responses:
			if !open {
				return errors.New("the watch ended")
			}
			if response.CompactRevision != 0 {
				return &CompactedError{Revision: start, Oldest: response.CompactRevision}
			}
			if err := response.Err(); err != nil {
				return err
			}
			for _, event := range response.Events {
				if event.Kv.ModRevision > l.bounds.Newest {
					return nil
				}
				if err := visit(event); err != nil {
					return err
				}
			}
			if response.IsProgressNotify() && response.Header.Revision >= l.bounds.Newest {
				return nil
			}
		}
	}
}

// Get is part of Reader.
func (l *Live) Get(ctx context.Context, key string, revision int64) (*mvccpb.KeyValue, error) {
	response, err := l.client.Get(ctx, key, clientv3.WithRev(revision))
	if err != nil {
		return nil, l.readError(ctx, key, revision, err)
	}
	if len(response.Kvs) == 0 {
		return nil, nil
	}
	return response.Kvs[0], nil
}

// readBatch is how many keys are read at a time: etcd's default limit of operations in a
// transaction is 128.
const readBatch = 100

// GetAll returns what keys hold now, nil for nothing, in the order of the keys.
func (l *Live) GetAll(ctx context.Context, keys []string) ([]*mvccpb.KeyValue, error) {
	list := make([]*mvccpb.KeyValue, 0, len(keys))
	for batch := range slices.Chunk(keys, readBatch) {
		operations := make([]clientv3.Op, len(batch))
		for i, key := range batch {
			operations[i] = clientv3.OpGet(key)
		}
		response, err := l.client.Txn(ctx).Then(operations...).Commit()
		if err != nil {
			return nil, Describe(ctx, l.client, "reading "+batch[0], err)
		}
		for _, r := range response.Responses {
			var kv *mvccpb.KeyValue
			if kvs := r.GetResponseRange().Kvs; len(kvs) > 0 {
				kv = kvs[0]
			}
			list = append(list, kv)
		}
	}
	return list, nil
}

// List is part of Reader.
func (l *Live) List(ctx context.Context, prefix string, revision int64, visit func(*mvccpb.KeyValue) error) error {
	key, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		response, err := l.client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(pageSize))
		if err != nil {
			return l.readError(ctx, prefix, revision, err)
		}
		for _, kv := range response.Kvs {
			if err := visit(kv); err != nil {
				return err
			}
		}
		if !response.More || len(response.Kvs) == 0 {
			return nil
		}
		key = string(response.Kvs[len(response.Kvs)-1].Key) + "\x00"
	}
}

func (l *Live) readError(ctx context.Context, key string, revision int64, err error) error {
	if errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("reading %s: %w", key, &CompactedError{Revision: revision})
	}
	return Describe(ctx, l.client, "reading "+key, err)
}

// Describe says what was done, where, and what an administrator can check.
func Describe(ctx context.Context, client *clientv3.Client, what string, err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	switch {
	case strings.Contains(err.Error(), rpctypes.ErrPermissionDenied.Error()), strings.Contains(err.Error(), "permission denied"):
		hint = ": etcd's authentication knows the certificate (--etcd-certfile), but its role does not permit this"
	case strings.Contains(err.Error(), "user name is empty"):
		hint = ": etcd's authentication is on, and the certificate (--etcd-certfile) names no user"
	case ctx.Err() != nil:
		hint = ": does etcd listen there (--etcd-servers), and are the certificates its own (--etcd-cafile, --etcd-certfile, --etcd-keyfile)?"
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
	}
	return fmt.Errorf("%s at %s: %w%s", what, strings.Join(client.Endpoints(), ","), err, hint)
}
