package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"kubelet-guard.io/node-e2e/framework"
)

// The API server of this suite has a client certificate for the webhook, as
// manifests/control-plane/static/callers says.
var _ = Describe("the port of the webhook", Label(labelInstall), func() {
	It("answers the API server and nobody else, and makes no evidence of a review alone", func(ctx SpecContext) {
		uid := uuid.NewUUID()
		review := forgedDelete(uid)
		for name, test := range map[string]struct {
			certificate string
			want        int
		}{
			"without a certificate":                   {"", http.StatusUnauthorized},
			"with that of an administrator":           {"admin", http.StatusForbidden},
			"with that of the node":                   {"kubelet-client-" + cluster.NodeName(), http.StatusForbidden},
			"with that of the API server, as it does": {"apiserver-kubelet-client", http.StatusOK},
		} {
			By("posting a forced delete of a pod that does not exist, " + name)
			code, answer := postReview(ctx, test.certificate, review)
			Expect(code).To(Equal(test.want), "%s: %s", name, answer)
		}
		Expect(framework.ErrorOf(getRecord(ctx, uid))).To(BeNotFound(), "record of a pod that does not exist")
	}, SpecTimeout(specTimeout))
})

// forgedDelete is a review of the forced delete of a protected pod, as nobody sent it.
func forgedDelete(uid types.UID) []byte {
	GinkgoHelper()
	pod := webPod("held")
	pod.UID, pod.Namespace, pod.Spec.NodeName = uid, metav1.NamespaceDefault, cluster.NodeName()
	pod.Status.Phase = corev1.PodRunning
	return framework.Must(json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "review", Operation: admissionv1.Delete, Namespace: pod.Namespace, Name: pod.Name,
			Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			UserInfo:  authenticationv1.UserInfo{Username: "nobody"},
			OldObject: runtime.RawExtension{Raw: framework.Must(json.Marshal(pod))},
			Options:   runtime.RawExtension{Raw: []byte(`{"kind":"DeleteOptions","apiVersion":"meta.k8s.io/v1","gracePeriodSeconds":0}`)},
		},
	}))
}

// postReview posts a review to a replica with a certificate of the cluster's folder, or
// with none.
func postReview(ctx context.Context, certificate string, review []byte) (code int, answer string) {
	GinkgoHelper()
	// Whose certificate it presents is what other specs are about.
	config := &tls.Config{InsecureSkipVerify: true}
	if certificate != "" {
		file := filepath.Join(outputDir, "clusters", *clusterFlag, "pki", certificate)
		config.Certificates = []tls.Certificate{framework.Must(tls.LoadX509KeyPair(file+".crt", file+".key"))}
	}
	caller := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	url := "https://" + net.JoinHostPort(webhookPods(ctx)[0].Status.PodIP, webhookPort) + "/validate/pod-deletion"
	request := framework.Must(http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(review)))
	request.Header.Set("Content-Type", "application/json")
	response := framework.Must(caller.Do(request))
	defer response.Body.Close()
	return response.StatusCode, string(framework.Must(io.ReadAll(response.Body)))
}
