package admission

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Request is one admission review. It is not safe for concurrent use.
type Request struct {
	admissionv1.AdmissionRequest

	object, oldObject, parent *metav1.PartialObjectMetadata
}

// NewRequest returns the request of a review.
func NewRequest(review admissionv1.AdmissionRequest) *Request {
	return &Request{AdmissionRequest: review}
}

// IsDryRun reports whether the request must have no effect.
func (r *Request) IsDryRun() bool { return r.DryRun != nil && *r.DryRun }

// Meta returns the metadata of the new object, nil when the operation has none
// (DELETE).
func (r *Request) Meta() (*metav1.PartialObjectMetadata, error) {
	return decodeOnce(&r.object, r.Object.Raw, "object")
}

// OldMeta returns the metadata of the old object, nil when the operation has none
// (CREATE).
func (r *Request) OldMeta() (*metav1.PartialObjectMetadata, error) {
	return decodeOnce(&r.oldObject, r.OldObject.Raw, "oldObject")
}

// SetParent gives the metadata of the object that a subresource belongs to, for a
// rule that had to look it up: the object of a review of /scale carries none of its
// labels and annotations. The override is then read from there.
func (r *Request) SetParent(parent *metav1.PartialObjectMetadata) { r.parent = parent }

// overrideHolder returns the metadata that may carry the override, nil when
// there is none.
func (r *Request) overrideHolder() (*metav1.PartialObjectMetadata, error) {
	switch {
	case r.parent != nil:
		return r.parent, nil
	case r.Operation == admissionv1.Delete:
		return r.OldMeta()
	}
	return r.Meta()
}

// DecodeObject reads the new object into the value, as its kind or a part of it.
func (r *Request) DecodeObject(into any) error { return decode(r.Object.Raw, "object", into) }

// DecodeOldObject reads the old object into the value.
func (r *Request) DecodeOldObject(into any) error { return decode(r.OldObject.Raw, "oldObject", into) }

// DecodeObjects reads both.
func (r *Request) DecodeObjects(before, after any) error {
	if err := r.DecodeOldObject(before); err != nil {
		return err
	}
	return r.DecodeObject(after)
}

// DecodeOptions reads the options of the operation into the value. Those of a DELETE
// are as the API server has completed them: gracePeriodSeconds is that of the pod when
// the client gave none.
func (r *Request) DecodeOptions(into any) error { return decode(r.Options.Raw, "options", into) }

// Key returns namespace and name of the object. The review of one object of a
// DELETECOLLECTION carries no name of its own, that of a CREATE with generateName
// none yet.
func (r *Request) Key() types.NamespacedName {
	key := types.NamespacedName{Namespace: r.Namespace, Name: r.Name}
	if isNamespace(r) {
		// The API server sets the namespace of a Namespace to its own name.
		key.Namespace = ""
	}
	if key.Name == "" {
		for _, read := range []func() (*metav1.PartialObjectMetadata, error){r.OldMeta, r.Meta} {
			if meta, err := read(); err == nil && meta != nil && meta.Name != "" {
				key.Name = meta.Name
				break
			}
		}
	}
	return key
}

func isNamespace(r *Request) bool {
	return r.Resource.Resource == "namespaces" && r.Resource.Group == ""
}

// Target returns how kubectl names the object, with its namespace: "deployment.apps/web
// in namespace shop".
func (r *Request) Target() string {
	key := r.Key()
	target := r.TargetArgument()
	if key.Namespace != "" {
		target += " in namespace " + key.Namespace
	}
	return target
}

// TargetArgument returns the object as an argument of kubectl, without its
// namespace: "deployment.apps/web".
func (r *Request) TargetArgument() string {
	kind := strings.ToLower(r.Kind.Kind)
	resource := r.Resource.Resource
	switch r.SubResource {
	case "", "status", "finalize":
	default:
		// The kind is the subresource's, such as Scale.
		kind = resource
	}
	if group := r.Resource.Group; group != "" {
		kind += "." + group
	}
	return kind + "/" + r.Key().Name
}

// NamespaceFlag returns " -n NAMESPACE" for a namespaced object, else "".
func (r *Request) NamespaceFlag() string {
	if key := r.Key(); key.Namespace != "" {
		return " -n " + key.Namespace
	}
	return ""
}

// IsNode reports whether the request comes from the kubelet of the node.
func (r *Request) IsNode(node string) bool {
	return node != "" && r.UserInfo.Username == "system:node:"+node &&
		slices.Contains(r.UserInfo.Groups, "system:nodes")
}

func decodeOnce(into **metav1.PartialObjectMetadata, raw []byte, field string) (*metav1.PartialObjectMetadata, error) {
	if *into == nil && len(raw) > 0 {
		meta := &metav1.PartialObjectMetadata{}
		if err := decode(raw, field, meta); err != nil {
			return nil, err
		}
		*into = meta
	}
	return *into, nil
}

func decode(raw []byte, field string, into any) error {
	if len(raw) == 0 {
		return fmt.Errorf("the review has no %s", field)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("decode %s of the review: %w", field, err)
	}
	return nil
}
