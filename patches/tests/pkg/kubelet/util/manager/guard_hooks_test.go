package manager

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	core "k8s.io/client-go/testing"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
	testingclock "k8s.io/utils/clock/testing"
)

// secretServer has one secret, and counts the requests for it.
type secretServer struct {
	client         *fake.Clientset
	watch          *watch.FakeWatcher
	lists, watches atomic.Int32
}

func newSecretServer() *secretServer {
	s := &secretServer{client: &fake.Clientset{}, watch: watch.NewFake()}
	s.client.AddReactor("list", "secrets", func(core.Action) (bool, runtime.Object, error) {
		s.lists.Add(1)
		return true, &v1.SecretList{ListMeta: metav1.ListMeta{ResourceVersion: "200"}, Items: []v1.Secret{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "name", ResourceVersion: "200"}},
		}}, nil
	})
	s.client.AddWatchReactor("secrets", func(core.Action) (bool, watch.Interface, error) {
		s.watches.Add(1)
		return true, s.watch, nil
	})
	return s
}

func guardPod(uid string) *v1.Pod {
	pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c-" + uid}}}}
	pod.Namespace, pod.Name, pod.UID = "ns", "p-"+uid, types.UID(uid)
	return pod
}

func TestGuardSecretsOfAVanishedPodAreNotRequested(t *testing.T) {
	tCtx := ktesting.Init(t)
	node := guardtest.Install(t)
	pod := guardPod("a")
	node.Vanish(t, pod)
	server := newSecretServer()
	store := newSecretCache(tCtx, server.client, testingclock.NewFakeClock(time.Now()), time.Minute)

	store.AddReference("ns", "name", pod.UID)
	start := time.Now()
	if object, err := store.Get("ns", "name"); err == nil {
		t.Errorf("got %v without an object to read", object)
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("an answer that cannot come was awaited for %s", took)
	}
	item := store.items[objectKey{namespace: "ns", name: "name"}]
	for range 3 {
		// What the reflector does in its loop, without the back-off.
		stop, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- item.reflector.ListAndWatch(stop) }()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("the reflector listed what it may not")
			}
		case <-time.After(5 * time.Second):
			t.Errorf("the reflector watches what it may not")
		}
		close(stop)
	}
	if lists, watches := server.lists.Load(), server.watches.Load(); lists+watches > 0 {
		t.Errorf("%d lists and %d watches for a vanished pod, want none", lists, watches)
	}

	store.AddReference("ns", "name", "successor")
	if err := pollFor(func() bool { _, err := store.Get("ns", "name"); return err == nil }); err != nil {
		t.Errorf("the secret of the successor is not read: %v", err)
	}
}

func TestGuardWatchOfAVanishedPodIsNotMadeAgain(t *testing.T) {
	tCtx := ktesting.Init(t)
	node := guardtest.Install(t)
	pod := guardPod("a")
	server := newSecretServer()
	clock := testingclock.NewFakeClock(time.Now())
	store := newSecretCache(tCtx, server.client, clock, time.Minute)
	store.AddReference("ns", "name", pod.UID)
	if err := pollFor(func() bool { _, err := store.Get("ns", "name"); return err == nil && server.watches.Load() == 1 }); err != nil {
		t.Fatalf("the secret is not read: %v", err)
	}
	node.Vanish(t, pod)
	server.watch.Stop()
	time.Sleep(2 * time.Second)
	if lists, watches := server.lists.Load(), server.watches.Load(); lists != 1 || watches != 1 {
		t.Errorf("%d lists and %d watches, want the first ones only", lists, watches)
	}

	// Secrets for the environment are not read for long, and their watches are ended.
	clock.Step(time.Hour)
	store.startRecycleIdleWatch()
	start := time.Now()
	object, err := store.Get("ns", "name")
	if secret, ok := object.(*v1.Secret); err != nil || !ok || secret.Name != "name" {
		t.Errorf("what was read before is gone: %v, %v", object, err)
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("an answer that cannot come was awaited for %s", took)
	}
}

func pollFor(condition func() bool) error {
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			return errors.New("timed out")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}
