package guard

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A decision about a pod without the label has to be free: the kubelet asks in
// its hot paths.
func BenchmarkRefuseUnprotected(b *testing.B) {
	g, err := New(Dependencies{Configuration: DefaultConfiguration()})
	if err != nil {
		b.Fatal(err)
	}
	defer Install(Install(g))
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u", Name: "p", Namespace: "n", Labels: map[string]string{
		"app": "web", "pod-template-hash": "5d59d67564", "version": "v1", "tier": "front",
	}}}
	b.ReportAllocs()
	for b.Loop() {
		if Refuse(pod, Evicted, "") {
			b.Fatal("refused")
		}
	}
}
