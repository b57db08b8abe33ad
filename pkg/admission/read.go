package admission

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Metadata reads the metadata of an object.
func Metadata(ctx context.Context, reader client.Reader, kind schema.GroupVersionKind, key types.NamespacedName) (*metav1.PartialObjectMetadata, error) {
	object := &metav1.PartialObjectMetadata{}
	object.SetGroupVersionKind(kind)
	if err := reader.Get(ctx, key, object); err != nil {
		return nil, err
	}
	return object, nil
}

// Found is how many objects a rule has found, of which one is named.
type Found struct {
	Count int
	// More: there are more than Count, which were not counted.
	More bool
	// Example is the name of one, with its namespace where that is not clear.
	Example string
}

// FoundIn returns what a page of a list holds.
func FoundIn(list *metav1.PartialObjectMetadataList) Found {
	found := Found{Count: len(list.Items), More: list.Continue != ""}
	if found.Count > 0 {
		found.Example = list.Items[0].Name
	}
	return found
}

// String returns "3 (such as web-0)", which follows the name of the kind: "pods: 3 (such as web-0)".
func (f Found) String() string {
	switch {
	case f.More:
		return fmt.Sprintf("at least %d (such as %s)", f.Count, f.Example)
	case f.Count == 1:
		return fmt.Sprintf("1 (%s)", f.Example)
	}
	return fmt.Sprintf("%d (such as %s)", f.Count, f.Example)
}
