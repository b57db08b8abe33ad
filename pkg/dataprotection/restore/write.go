package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/pkg/dataprotection/history"
)

const (
	// batchKeys is how many keys one transaction writes: etcd's default limit is 128
	// (--max-txn-ops), of which other settings leave less room than of keys.
	batchKeys = 100
	// batchBytes bounds the values of a transaction: etcd's default limit of a request is
	// 1.5 MiB (--max-request-bytes), keys and comparisons included.
	batchBytes = 1 << 20
)

// Apply writes the plan. progress is called with the number of objects written so far. What
// was written is in the journal, whatever the error; a second run of the same command
// completes it. wait is called before a stage that needs the API server to serve what was
// written before; see API.waitServed.
func (p *Plan) Apply(ctx context.Context, client *clientv3.Client, journal *Journal, progress func(int), wait func(context.Context, []*Item) error) error {
	if refused := p.Count(Refuse); refused > 0 {
		return fmt.Errorf("objects refused: %d; nothing is written", refused)
	}
	batches := p.batches()
	// All permissions and the state of etcd, before the first write.
	for _, batch := range batches {
		if err := probe(ctx, client, batch); err != nil {
			return fmt.Errorf("nothing is written: %w", err)
		}
	}
	if err := journal.start(p); err != nil {
		return err
	}
	written := 0
	for i, batch := range batches {
		if i > 0 && batch[0].stage != batches[i-1][0].stage {
			if err := wait(ctx, p.Items[:written]); err != nil {
				return journal.fail(err)
			}
		}
		err := context.Cause(ctx)
		if err == nil {
			err = write(ctx, client, batch, journal)
		}
		if err != nil {
			return journal.fail(fmt.Errorf("after %d of %d objects: %w; the same command completes it", written, p.Writes(), err))
		}
		written += len(batch)
		progress(written)
	}
	return journal.finish(written)
}

// batches are the transactions, in the order of the plan. None has items of two stages: what is
// in one transaction appears at once, but in the order of their keys to a watch.
func (p *Plan) batches() [][]*Item {
	var list [][]*Item
	var batch []*Item
	size := 0
	for _, item := range p.Items {
		if !item.written() {
			continue
		}
		bytes := 2*len(item.Key) + len(item.value.Value)
		if len(batch) > 0 && (len(batch) == batchKeys || size+bytes > batchBytes || batch[0].stage != item.stage) {
			list = append(list, batch)
			batch, size = nil, 0
		}
		batch = append(batch, item)
		size += bytes
	}
	if len(batch) > 0 {
		list = append(list, batch)
	}
	return list
}

// unchanged compares that a key is as it was when the plan was made.
func (i *Item) unchanged() clientv3.Cmp {
	if i.present == nil {
		return clientv3.Compare(clientv3.CreateRevision(i.Key), "=", 0)
	}
	return clientv3.Compare(clientv3.ModRevision(i.Key), "=", i.present.ModRevision)
}

// probe lets etcd check the permission and the space for the writes of a batch. Its comparison
// never holds, so that nothing is written: etcd checks all operations of a transaction before
// it compares (server/etcdserver/apply: checkTxnAuth, and applierV3Capped for a full store).
func probe(ctx context.Context, client *clientv3.Client, batch []*Item) error {
	operations := make([]clientv3.Op, len(batch))
	for i, item := range batch {
		operations[i] = clientv3.OpPut(item.Key, "")
	}
	never := clientv3.Compare(clientv3.CreateRevision(batch[0].Key), "=", -1)
	_, err := client.Txn(ctx).If(never).Then(operations...).Commit()
	return history.Describe(ctx, client, "writing "+batch[0].Key, err)
}

// errChanged says that a key is not as it was when the plan was made.
var errChanged = errors.New("changed since the plan was made, so nothing of this transaction is written")

// writeTimeout is how long a transaction may take: without a quorum it would wait for ever.
const writeTimeout = 30 * time.Second

// write is one transaction. A signal does not interrupt it, so that its result is known.
func write(ctx context.Context, client *clientv3.Client, batch []*Item, journal *Journal) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	if err := journal.writing(batch); err != nil {
		return err
	}
	var conditions []clientv3.Cmp
	var writes, reads []clientv3.Op
	for _, item := range batch {
		conditions = append(conditions, item.unchanged())
		writes = append(writes, clientv3.OpPut(item.Key, string(item.value.Value)))
		reads = append(reads, clientv3.OpGet(item.Key, clientv3.WithKeysOnly()))
	}
	response, err := client.Txn(ctx).If(conditions...).Then(writes...).Else(reads...).Commit()
	if err != nil {
		return history.Describe(ctx, client, "writing "+batch[0].Key, err)
	}
	if !response.Succeeded {
		i := slices.IndexFunc(batch, func(item *Item) bool { return item.changedIn(response, batch) })
		if i < 0 {
			return errChanged
		}
		return fmt.Errorf("%s: %w", batch[i], errChanged)
	}
	return journal.written(batch, response.Header.Revision)
}

// changedIn reports whether the reads of a refused transaction show another version.
func (i *Item) changedIn(response *clientv3.TxnResponse, batch []*Item) bool {
	kvs := response.Responses[slices.Index(batch, i)].GetResponseRange().Kvs
	if i.present == nil {
		return len(kvs) > 0
	}
	return len(kvs) == 0 || kvs[0].ModRevision != i.present.ModRevision
}
