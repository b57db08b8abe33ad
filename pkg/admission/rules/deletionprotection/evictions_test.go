package deletionprotection

import (
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/metadata/fake"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

func TestEvictions(t *testing.T) {
	scheme := fake.NewTestScheme()
	require.NoError(t, metav1.AddMetaToScheme(scheme))
	pod := func(name, protection string) runtime.Object {
		return &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{guardv1alpha1.DeletionProtectionLabel: protection}},
		}
	}
	rule := Evictions{Metadata: fake.NewSimpleMetadataClient(scheme, pod("always", "always"), pod("cascading", "cascading"))}
	for name, want := range map[string]admission.Verdict{"always": admission.Refused, "cascading": admission.Allowed, "gone": admission.Allowed} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, want, rule.Review(t.Context(), admission.NewRequest(admissionv1.AdmissionRequest{
				Operation: admissionv1.Create, Namespace: "shop", Name: name, SubResource: "eviction",
				Kind:     metav1.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"},
				Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			})).Verdict)
		})
	}
}
