package admission

import (
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestFollowsDeployment(t *testing.T) {
	const (
		controller = "system:serviceaccount:kube-system:deployment-controller"
		deployment = `{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment","name":"web","controller":true}]}}`
	)
	for name, test := range map[string]struct {
		user, group, resource, subresource, old string
		want                                    bool
	}{
		"the controller":                     {controller, "apps", "replicasets", "", deployment, true},
		"a controller manager with one name": {"system:kube-controller-manager", "apps", "replicasets", "", deployment, true},
		"someone else":                       {"jane", "apps", "replicasets", "", deployment, false},
		"another controller":                 {"system:serviceaccount:kube-system:replicaset-controller", "apps", "replicasets", "", deployment, false},
		"an account of the same name":        {"system:serviceaccount:shop:deployment-controller", "apps", "replicasets", "", deployment, false},
		"another kind":                       {controller, "apps", "statefulsets", "", deployment, false},
		"another group":                      {controller, "apps.example.com", "replicasets", "", deployment, false},
		"through scale":                      {controller, "apps", "replicasets", "scale", deployment, false},
		"a bare ReplicaSet":                  {controller, "apps", "replicasets", "", `{"metadata":{}}`, false},
		"of another owner":                   {controller, "apps", "replicasets", "", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"x","controller":true}]}}`, false},
		"of another group's Deployment":      {controller, "apps", "replicasets", "", `{"metadata":{"ownerReferences":[{"apiVersion":"apps.example.com/v1","kind":"Deployment","name":"x","controller":true}]}}`, false},
		"owned and not controlled":           {controller, "apps", "replicasets", "", `{"metadata":{"ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment","name":"web"}]}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewRequest(admissionv1.AdmissionRequest{
				Operation: admissionv1.Update, SubResource: test.subresource, UserInfo: authenticationv1.UserInfo{Username: test.user},
				Resource:  metav1.GroupVersionResource{Group: test.group, Version: "v1", Resource: test.resource},
				OldObject: runtime.RawExtension{Raw: []byte(test.old)},
			}).FollowsDeployment()
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}
