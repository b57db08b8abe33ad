// Package admissiontest has what the tests of several rules need.
package admissiontest

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

// Review returns the review of an operation. The object before and after it is a value, a text in
// YAML, or nil.
func Review(t testing.TB, operation admissionv1.Operation, kind schema.GroupVersionKind, resource string, before, after any) admissionv1.AdmissionRequest {
	t.Helper()
	review := admissionv1.AdmissionRequest{
		Operation: operation, Kind: metav1.GroupVersionKind(kind),
		Resource:  metav1.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: resource},
		OldObject: runtime.RawExtension{Raw: encode(t, before)}, Object: runtime.RawExtension{Raw: encode(t, after)},
	}
	var object metav1.PartialObjectMetadata
	for _, raw := range [][]byte{review.Object.Raw, review.OldObject.Raw} {
		if raw != nil {
			require.NoError(t, json.Unmarshal(raw, &object))
		}
	}
	review.Namespace, review.Name = object.Namespace, object.Name
	return review
}

func encode(t testing.TB, value any) []byte {
	t.Helper()
	if value == nil {
		return nil
	}
	var (
		raw []byte
		err error
	)
	if text, ok := value.(string); ok {
		raw, err = yaml.YAMLToJSON([]byte(text))
	} else {
		raw, err = json.Marshal(value)
	}
	require.NoError(t, err)
	return raw
}

// Pods returns the client of an API server that lists these pods, as far as their labels are
// selected, or that fails. more: the list has further pages. A list must leave finished pods out.
func Pods(t testing.TB, failure error, more bool, pods ...metav1.PartialObjectMetadata) metadata.Interface {
	t.Helper()
	scheme := fake.NewTestScheme()
	require.NoError(t, metav1.AddMetaToScheme(scheme))
	client := fake.NewSimpleMetadataClient(scheme)
	client.PrependReactor("list", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		selected := action.(clienttesting.ListAction).GetListRestrictions().Fields
		for phase, want := range map[corev1.PodPhase]bool{corev1.PodPending: true, corev1.PodRunning: true, corev1.PodSucceeded: false, corev1.PodFailed: false} {
			require.Equal(t, want, selected.Matches(fields.Set{"status.phase": string(phase)}), phase)
		}
		if failure != nil {
			return true, nil, failure
		}
		list := &metav1.List{}
		for i := range pods {
			list.Items = append(list.Items, runtime.RawExtension{Object: &pods[i]})
		}
		if more {
			list.Continue = "more"
		}
		return true, list, nil
	})
	return client
}
