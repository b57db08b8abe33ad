package nodedeletion

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// LiveLedgers reads policies as they are at the API server, and writes their ledgers. A
// ledger of a thousand deletions is 200 KiB of JSON, which takes longer to read than to
// judge. So it requests the version of the policy alone, and the whole policy only when
// neither the cache nor the last write has that version; and a write is of the entries that
// change. It is safe for concurrent use.
type LiveLedgers struct {
	cache  client.Reader
	reader client.Reader
	writer client.StatusClient

	mu sync.Mutex
	// written are policies as this process wrote them last, by name.
	written map[string]*guardv1alpha1.NodeDeletionPolicy
}

// NewLiveLedgers returns ledgers of a manager: its client, which caches, its API reader,
// which must not, and its client to write with.
func NewLiveLedgers(cache, reader client.Reader, writer client.StatusClient) *LiveLedgers {
	return &LiveLedgers{cache: cache, reader: reader, writer: writer, written: map[string]*guardv1alpha1.NodeDeletionPolicy{}}
}

// Get implements Ledgers. The deletions of the policy are shared and must not be changed.
func (l *LiveLedgers) Get(ctx context.Context, name string) (*guardv1alpha1.NodeDeletionPolicy, error) {
	key, live := client.ObjectKey{Name: name}, policyMetadata(name)
	if err := l.reader.Get(ctx, key, live); err != nil {
		return nil, err
	}
	if known := l.known(ctx, live); known != nil {
		policy := *known
		return &policy, nil
	}
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	if err := l.reader.Get(ctx, key, policy); err != nil {
		return nil, err
	}
	return policy, nil
}

// known returns the policy in this version, nil when neither the cache nor the last write has it.
func (l *LiveLedgers) known(ctx context.Context, version metav1.Object) *guardv1alpha1.NodeDeletionPolicy {
	l.mu.Lock()
	written := l.written[version.GetName()]
	l.mu.Unlock()
	cached := &guardv1alpha1.NodeDeletionPolicy{}
	if err := l.cache.Get(ctx, client.ObjectKey{Name: version.GetName()}, cached, client.UnsafeDisableDeepCopy); err != nil {
		cached = nil
	}
	for _, policy := range []*guardv1alpha1.NodeDeletionPolicy{cached, written} {
		if policy != nil && policy.UID == version.GetUID() && policy.ResourceVersion == version.GetResourceVersion() {
			return policy
		}
	}
	return nil
}

// UpdateStatus implements Ledgers.
func (l *LiveLedgers) UpdateStatus(ctx context.Context, policy *guardv1alpha1.NodeDeletionPolicy) error {
	known := l.known(ctx, policy)
	if known == nil {
		return l.writer.Status().Update(ctx, policy)
	}
	changes := patchOf(known.Status.Deletions, policy.Status.Deletions)
	counted, isWhole := patchOfCounts(&known.Status, &policy.Status)
	if changes == nil || !isWhole {
		return l.writer.Status().Update(ctx, policy)
	}
	changes = append(changes, counted...)
	// The version makes it a compare-and-swap: another one is a conflict.
	changes = append(changes, patchOperation{Op: "replace", Path: "/metadata/resourceVersion", Value: policy.ResourceVersion})
	patch, err := json.Marshal(changes)
	if err != nil {
		return err
	}
	after := policyMetadata(policy.Name)
	if err := l.writer.Status().Patch(ctx, after, client.RawPatch(types.JSONPatchType, patch)); err != nil {
		return err
	}
	// All that has changed since the version that the patch was made for.
	written := *policy
	written.ResourceVersion = after.ResourceVersion
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written[policy.Name] = &written
	return nil
}

func policyMetadata(name string) *metav1.PartialObjectMetadata {
	object := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name}}
	object.SetGroupVersionKind(guardv1alpha1.GroupVersion.WithKind(guardv1alpha1.NodeDeletionPolicyKind))
	return object
}

// patchOperation is one of a JSON patch (RFC 6902).
type patchOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

const deletionsPath = "/status/deletions"

// patchOfCounts returns what makes the fields that go with the ledger those of the
// other status. It is false where more than setting them is needed.
func patchOfCounts(before, after *guardv1alpha1.NodeDeletionPolicyStatus) ([]patchOperation, bool) {
	var operations []patchOperation
	if after.DeletionsCounted != nil {
		operations = append(operations, patchOperation{Op: "add", Path: "/status/deletionsCounted", Value: after.DeletionsCounted})
	} else if before.DeletionsCounted != nil {
		return nil, false
	}
	if after.NextDeletionExpires != nil {
		operations = append(operations, patchOperation{Op: "add", Path: "/status/nextDeletionExpires", Value: after.NextDeletionExpires})
	} else if before.NextDeletionExpires != nil {
		return nil, false
	}
	return operations, true
}

// patchOf returns what makes one ledger of the other by adding and removing entries. It is
// nil where more than that is needed, also when one of them is empty.
func patchOf(before, after []guardv1alpha1.NodeDeletion) []patchOperation {
	if len(before) == 0 || len(after) == 0 {
		return nil
	}
	stays := make(map[types.UID]bool, len(after))
	for i := range after {
		stays[after[i].UID] = true
	}
	var operations []patchOperation
	left := make([]guardv1alpha1.NodeDeletion, 0, len(before))
	for i := range before {
		if stays[before[i].UID] {
			left = append(left, before[i])
		} else {
			// Those before it are gone already.
			operations = append(operations, patchOperation{Op: "remove", Path: fmt.Sprintf("%s/%d", deletionsPath, len(left))})
		}
	}
	for i := range after {
		if i < len(left) && left[i].UID == after[i].UID {
			continue
		}
		operations = append(operations, patchOperation{Op: "add", Path: fmt.Sprintf("%s/%d", deletionsPath, i), Value: after[i]})
		left = slices.Insert(left, i, after[i])
	}
	if len(left) != len(after) {
		return nil
	}
	return operations
}
