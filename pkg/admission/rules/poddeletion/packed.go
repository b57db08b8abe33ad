package poddeletion

import (
	"fmt"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Packed is a budget as a cache keeps it: encoded, in a third of the memory, since there may
// be ten thousand and few are read. Nothing but managedFields is missing. A reservation
// is an update that starts from the cached budget, and removes from the live one what that does
// not have; only managedFields stay as they are without being sent.
type Packed struct {
	name    types.NamespacedName
	version string
	// encoded is in protobuf.
	encoded []byte
}

// Pack returns the packed budget. It removes managedFields from the budget itself.
func Pack(budget *policyv1.PodDisruptionBudget) *Packed {
	budget.ManagedFields = nil
	encoded, err := budget.Marshal()
	if err != nil {
		panic(fmt.Sprintf("poddisruptionbudget %s/%s, which was decoded, cannot be encoded: %v", budget.Namespace, budget.Name, err))
	}
	return &Packed{
		name:    types.NamespacedName{Namespace: budget.Namespace, Name: budget.Name},
		version: budget.ResourceVersion, encoded: encoded,
	}
}

// Unpack returns a budget that is the caller's own.
func (p *Packed) Unpack() *policyv1.PodDisruptionBudget {
	budget := &policyv1.PodDisruptionBudget{}
	if err := budget.Unmarshal(p.encoded); err != nil {
		panic(fmt.Sprintf("poddisruptionbudget %s, which was encoded here, cannot be decoded: %v", p.name, err))
	}
	return budget
}

// Transform packs budgets. It is a transformation for a cache that is read only by
// events, as an Index does.
func Transform(object any) (any, error) {
	if budget, ok := object.(*policyv1.PodDisruptionBudget); ok {
		return Pack(budget), nil
	}
	return object, nil
}

// GetObjectMeta implements metav1.ObjectMetaAccessor, with what a cache has to know.
func (p *Packed) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: p.name.Namespace, Name: p.name.Name, ResourceVersion: p.version}
}

// GetObjectKind implements runtime.Object.
func (*Packed) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. What is packed never changes.
func (p *Packed) DeepCopyObject() runtime.Object { clone := *p; return &clone }
