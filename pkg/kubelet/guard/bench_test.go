package guard

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ordinaryPod has the labels of a pod of a Deployment.
func ordinaryPod() *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u", Name: "p", Namespace: "n", Labels: map[string]string{
		"app": "web", "pod-template-hash": "5d59d67564", "version": "v1", "tier": "front",
	}}}
}

// A decision about a pod without the label has to be free: the kubelet decides in
// its hot paths.
func TestDecisionAboutAnUnprotectedPodAllocatesNothing(t *testing.T) {
	f := newFixture(t)
	defer Install(Install(f.Guard))
	pod := ordinaryPod()
	f.ObserveSource(apiSource, []*v1.Pod{pod})
	for name, decide := range map[string]func(){
		"Refuse":            func() { Refuse(pod, Evicted, "") },
		"RefuseUID":         func() { RefuseUID(pod.UID, VolumeUnmount, "") },
		"RefuseTermination": func() { RefuseTermination(pod, false, false, false) },
		"CheckKill":         func() { _ = CheckKill(pod) },
		"AllowStop":         func() { AllowStop(pod, "c") },
		"HoldVanished":      func() { HoldVanished(apiSource, pod) },
	} {
		t.Run(name, func(t *testing.T) {
			assert.Zero(t, testing.AllocsPerRun(1000, decide))
		})
	}
}

func BenchmarkRefuseUnprotected(b *testing.B) {
	f := newFixture(b)
	defer Install(Install(f.Guard))
	pod := ordinaryPod()
	b.ReportAllocs()
	for b.Loop() {
		if Refuse(pod, Evicted, "") {
			b.Fatal("refused")
		}
	}
}

// The path of every ordinary deletion of a protected pod.
func BenchmarkRefuseProtectedWithEvidence(b *testing.B) {
	f := newFixture(b)
	pod := protectedPod("p")
	f.running(pod)
	f.observe(deleted(pod))
	b.ReportAllocs()
	for b.Loop() {
		if f.Refuse(pod, Evicted, "") {
			b.Fatal("refused")
		}
	}
}

// The volume reconciler comes back ten times a second.
func BenchmarkRefuseHeldRetry(b *testing.B) {
	f := newFixture(b)
	pod := protectedPod("p")
	f.running(pod)
	b.ReportAllocs()
	for b.Loop() {
		if !f.RefuseUID(pod.UID, VolumeUnmount, "") {
			b.Fatal("allowed")
		}
	}
}

// Every watch event of the API source is one such message.
func BenchmarkObserveSource(b *testing.B) {
	for _, kind := range []struct {
		name string
		make func(string) *v1.Pod
	}{{"none of 110 protected", plainPod}, {"all of 110 protected", protectedPod}} {
		b.Run(kind.name, func(b *testing.B) {
			f := newFixture(b)
			var pods []*v1.Pod
			for i := range 110 {
				pods = append(pods, kind.make(fmt.Sprint("p", i)))
			}
			b.ReportAllocs()
			for b.Loop() {
				f.ObserveSource(apiSource, pods)
			}
		})
	}
}

// A scrape on a node with 110 protected pods, half of them held.
func BenchmarkStateCollector(b *testing.B) {
	f := newFixture(b)
	var pods []*v1.Pod
	for i := range 110 {
		pod := protectedPod(fmt.Sprint("p", i))
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		pods = append(pods, pod)
	}
	f.ObserveSource(apiSource, pods)
	for _, pod := range pods[:55] {
		f.Refuse(pod, Evicted, "")
	}
	f.clock.Step(time.Minute)
	registry := metrics.NewKubeRegistry()
	registry.CustomMustRegister(newStateCollector(f.Guard))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
