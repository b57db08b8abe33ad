package config

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// guardTest is a pod config with one source.
type guardTest struct {
	*guardtest.Node
	// source takes what the source has.
	source  chan<- sourceUpdate
	updates <-chan kubetypes.PodUpdate
}

func newGuardTest(t *testing.T, source string, change ...func(*guard.Configuration)) *guardTest {
	t.Helper()
	ctx := ktesting.Init(t)
	config := newGuardTestConfig(record.NewBroadcaster(record.WithContext(ctx)).NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet"}))
	return &guardTest{Node: guardtest.Install(t, change...), source: config.Channel(ctx, source), updates: config.Updates()}
}

// await returns the operations by pod name that the kubelet gets, until it gets op for
// the named pod.
func (g *guardTest) await(t *testing.T, op kubetypes.PodOperation, name string) map[string]kubetypes.PodOperation {
	t.Helper()
	seen := map[string]kubetypes.PodOperation{}
	timeout := time.After(10 * time.Second)
	for {
		select {
		case update := <-g.updates:
			found := false
			for _, pod := range update.Pods {
				seen[pod.Name] = update.Op
				found = found || update.Op == op && pod.Name == name
			}
			if found {
				return seen
			}
		case <-timeout:
			t.Fatalf("waited 10 s for operation %v of pod %s, saw %v", op, name, seen)
		}
	}
}

// newGuardTestPod returns a valid pod of the kind that runs.
func (g *guardTest) newPod(kind guardtest.Kind) *v1.Pod {
	pod := CreateValidPod("web", "shop")
	kind.Change(pod)
	g.Run(pod)
	return pod
}

// runSandbox makes a sandbox for the pod, as the kubelet does.
func (g *guardTest) runSandbox(t *testing.T, pod *v1.Pod) {
	t.Helper()
	sandbox := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID), Name: pod.Name, Namespace: pod.Namespace}}
	if _, err := g.Guard.RuntimeService(g.Runtime).RunPodSandbox(ktesting.Init(t), sandbox, ""); err != nil {
		t.Fatal(err)
	}
}

// marker is a pod that is added behind an event, to see that the event was dealt
// with.
func marker() *v1.Pod { return CreateValidPod("marker", "shop") }

func TestGuardPodThatVanishes(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			source := kubetypes.ApiserverSource
			sample := CreateValidPod("sample", "shop")
			kind.Change(sample)
			if kubetypes.IsStaticPod(sample) {
				source = kubetypes.FileSource
			}
			g := newGuardTest(t, source)
			pod := g.newPod(kind)
			g.source <- createSourceUpdate(pod)
			g.await(t, kubetypes.ADD, "web")

			g.source <- createSourceUpdate(marker())

			seen := g.await(t, kubetypes.ADD, "marker")
			if _, removed := seen["web"]; removed == kind.Kept {
				t.Errorf("the kubelet gets %v, want the pod kept: %v", seen, kind.Kept)
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.PodVanished)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardPodThatVanishesAfterItEnded(t *testing.T) {
	g := newGuardTest(t, kubetypes.ApiserverSource)
	pod := g.newPod(guardtest.Kinds()[0])
	g.source <- createSourceUpdate(pod)
	g.await(t, kubetypes.ADD, "web")
	g.Exit()

	g.source <- createSourceUpdate()

	g.await(t, kubetypes.REMOVE, "web")
	g.ExpectHolds(t, pod.UID)
}

func TestGuardHoldEndsWhenThePodIsBack(t *testing.T) {
	g := newGuardTest(t, kubetypes.ApiserverSource)
	pod := g.newPod(guardtest.Kinds()[0])
	g.source <- createSourceUpdate(pod)
	g.await(t, kubetypes.ADD, "web")
	g.source <- createSourceUpdate(marker())
	g.await(t, kubetypes.ADD, "marker")
	g.ExpectHolds(t, pod.UID, guard.PodVanished)

	back := pod.DeepCopy()
	second := CreateValidPod("second", "shop")
	g.source <- createSourceUpdate(back, second)

	// It never left, so it is not added again.
	seen := g.await(t, kubetypes.ADD, "second")
	if op, known := seen["web"]; known && op == kubetypes.ADD {
		t.Errorf("the kubelet gets %v: the pod was added twice", seen)
	}
	g.ExpectHolds(t, pod.UID)

	deleted := pod.DeepCopy()
	guardtest.Delete(deleted)
	g.source <- createSourceUpdate(deleted, second)
	g.await(t, kubetypes.DELETE, "web")
	g.source <- createSourceUpdate(second)
	g.await(t, kubetypes.REMOVE, "web")
	g.ExpectHolds(t, pod.UID)
}

// The permission to remove a pod of which nothing ran ends when it runs again.
func TestGuardPodThatComesBackIsProtectedAgain(t *testing.T) {
	g := newGuardTest(t, kubetypes.ApiserverSource)
	pod := g.newPod(guardtest.Kinds()[0])
	g.source <- createSourceUpdate(pod)
	g.await(t, kubetypes.ADD, "web")
	g.Exit()
	g.source <- createSourceUpdate()
	g.await(t, kubetypes.REMOVE, "web")

	g.source <- createSourceUpdate(pod.DeepCopy())
	g.await(t, kubetypes.ADD, "web")
	g.runSandbox(t, pod)
	g.Run(pod)

	g.source <- createSourceUpdate(marker())
	if seen := g.await(t, kubetypes.ADD, "marker"); len(seen) != 1 {
		t.Errorf("the kubelet gets %v, want the pod that runs again kept", seen)
	}
	g.ExpectHolds(t, pod.UID, guard.PodVanished)
}

// The kubelet was restarted, and the API no longer has what ran before.
func TestGuardSavedPodIsInTheFirstMessageAfterARestart(t *testing.T) {
	for _, alive := range []bool{true, false} {
		t.Run(map[bool]string{true: "alive", false: "ended meanwhile"}[alive], func(t *testing.T) {
			dir := guardtest.StateDir(t)
			state := func(c *guard.Configuration) { c.StateDir = dir }
			before := newGuardTest(t, kubetypes.ApiserverSource, state)
			pod := before.newPod(guardtest.Kinds()[0])
			before.source <- createSourceUpdate(pod)
			before.await(t, kubetypes.ADD, "web")
			// The file is there before the pod's first sandbox is.
			before.runSandbox(t, pod)

			after := newGuardTest(t, kubetypes.ApiserverSource, state)
			after.Run(pod)
			if !alive {
				after.Exit()
			}
			after.source <- createSourceUpdate(marker())

			// One message: the kubelet believes that a source is complete after its first.
			seen := after.await(t, kubetypes.ADD, "marker")
			if _, added := seen["web"]; added != alive {
				t.Errorf("the kubelet gets %v, want the pod added: %v", seen, alive)
			}
			if alive {
				after.ExpectHolds(t, pod.UID, guard.PodVanished)
			} else {
				after.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// A StatefulSet makes a pod of the same name when the first one's object is gone.
func TestGuardSuccessorOfHeldPod(t *testing.T) {
	g := newGuardTest(t, kubetypes.ApiserverSource)
	pod := g.newPod(guardtest.Kinds()[0])
	g.source <- createSourceUpdate(pod)
	g.await(t, kubetypes.ADD, "web")
	successor := CreateValidPod("web", "shop")
	guardtest.Protect(successor)
	successor.UID = "successor"

	g.source <- createSourceUpdate(successor)

	g.await(t, kubetypes.ADD, "web")
	g.ExpectHolds(t, pod.UID, guard.PodVanished)
	g.ExpectHolds(t, successor.UID)

	// The successor goes the ordinary way, the first one stays.
	deleted := successor.DeepCopy()
	guardtest.Delete(deleted)
	g.source <- createSourceUpdate(deleted)
	g.await(t, kubetypes.DELETE, "web")
	g.source <- createSourceUpdate()
	update := <-g.updates
	if update.Op != kubetypes.REMOVE || len(update.Pods) != 1 || update.Pods[0].UID != successor.UID {
		t.Errorf("the kubelet gets %+v, want the successor removed", update)
	}
	g.ExpectHolds(t, pod.UID, guard.PodVanished)
}

// A terminal phase is believed all over the kubelet, so it is stopped where it
// comes in.
func TestGuardPodThatTheAPICallsEnded(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			g := newGuardTest(t, kubetypes.ApiserverSource)
			pod := g.newPod(kind)
			if kubetypes.IsStaticPod(pod) {
				t.Skip("the API has no static pods")
			}
			pod.Status.Phase = v1.PodFailed
			pod.Status.Reason = "NodeAffinity"

			g.source <- createSourceUpdate(pod)

			update := <-g.updates
			want, reason := v1.PodFailed, "NodeAffinity"
			if kind.Kept {
				want, reason = "", ""
			}
			if update.Op != kubetypes.ADD || len(update.Pods) != 1 || update.Pods[0].Status.Phase != want || update.Pods[0].Status.Reason != reason {
				t.Errorf("the kubelet gets %+v, want the pod added with phase %q and reason %q", update, want, reason)
			}
			if pod.Status.Phase != v1.PodFailed {
				t.Error("the object of the source was changed")
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.TerminalPhaseReported)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// The kubelet kills without a grace period when, by the object, all containers are being
// restarted.
func TestGuardPodThatTheAPICallsRestarting(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		for _, runs := range []bool{true, false} {
			t.Run(kind.Name+map[bool]string{true: "/all of it runs", false: "/its container has exited"}[runs], func(t *testing.T) {
				g := newGuardTest(t, kubetypes.ApiserverSource)
				pod := g.newPod(kind)
				if kubetypes.IsStaticPod(pod) {
					t.Skip("the API has no static pods")
				}
				if !runs {
					g.Runtime.Containers["ctr"].State = runtimeapi.ContainerState_CONTAINER_EXITED
				}
				pod.Status.Conditions = []v1.PodCondition{
					{Type: v1.PodReady, Status: v1.ConditionTrue},
					{Type: v1.AllContainersRestarting, Status: v1.ConditionTrue},
				}

				g.source <- createSourceUpdate(pod)

				update := <-g.updates
				want := 2
				if kind.Kept && runs {
					want = 1
				}
				if update.Op != kubetypes.ADD || len(update.Pods) != 1 || len(update.Pods[0].Status.Conditions) != want {
					t.Errorf("the kubelet gets %+v, want the pod added with %d conditions", update, want)
				}
				if len(pod.Status.Conditions) != 2 {
					t.Error("the object of the source was changed")
				}
				if kind.Kept && runs {
					g.ExpectHolds(t, pod.UID, guard.RestartReported)
				} else {
					g.ExpectHolds(t, pod.UID)
				}
			})
		}
	}
}

// After a restore of the API's storage a pod may have an object from before its newest
// image.
func TestGuardObjectThatWasRolledBack(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			g := newGuardTest(t, kubetypes.ApiserverSource, func(c *guard.Configuration) { c.StateDir = guardtest.StateDir(t) })
			pod := CreateValidPod("web", "shop")
			pod.Spec.Containers[0].Image = "image:2"
			pod.ResourceVersion = "20"
			kind.Change(pod)
			if kubetypes.IsStaticPod(pod) {
				t.Skip("the API has no static pods")
			}
			g.Run(pod)
			g.source <- createSourceUpdate(pod.DeepCopy())
			g.await(t, kubetypes.ADD, "web")

			older := pod.DeepCopy()
			older.Spec.Containers[0].Image = "image:1"
			older.ResourceVersion = "10"
			g.source <- createSourceUpdate(older.DeepCopy(), marker())

			seen := g.await(t, kubetypes.ADD, "marker")
			if _, known := seen["web"]; !known && !kind.Kept {
				// Additions come first.
				update := <-g.updates
				known = len(update.Pods) == 1 && update.Pods[0].Name == "web" && update.Pods[0].Spec.Containers[0].Image == "image:1"
				if !known {
					t.Errorf("the kubelet gets %+v, want the image of the older object", update)
				}
			} else if known && kind.Kept {
				t.Errorf("the kubelet gets %v, want the pod left as it is", seen)
			}
			if !kind.Kept {
				g.ExpectHolds(t, pod.UID)
				return
			}
			g.ExpectHolds(t, pod.UID, guard.ObjectRolledBack)

			// A change of the restored object is a declaration like any other.
			changed := older.DeepCopy()
			changed.Spec.Containers[0].Image = "image:3"
			changed.ResourceVersion = "11"
			g.source <- createSourceUpdate(changed, marker())
			select {
			case update := <-g.updates:
				if update.Op != kubetypes.UPDATE || len(update.Pods) != 1 || update.Pods[0].Spec.Containers[0].Image != "image:3" {
					t.Errorf("the kubelet gets %+v, want the changed image and nothing before it", update)
				}
			case <-time.After(10 * time.Second):
				t.Error("the kubelet does not get the changed image within 10 s")
			}
			g.ExpectHolds(t, pod.UID)
		})
	}
}

// The last object of a DELETED event is in no store. A deletion through the API
// shows in it; a key that was removed from etcd does not.
func TestGuardDeletedEvent(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			g := newGuardTest(t, kubetypes.ApiserverSource)
			pod := g.newPod(kind)
			if kubetypes.IsStaticPod(pod) {
				t.Skip("the API has no static pods")
			}
			listed := pod.DeepCopy()
			listed.DeletionTimestamp, listed.DeletionGracePeriodSeconds = nil, nil
			events := watch.NewFake()
			newSourceApiserverFromLW(fakePodLW{listResp: &v1.PodList{Items: []v1.Pod{*listed}}, watchResp: events}, g.source)
			g.await(t, kubetypes.ADD, "web")

			events.Delete(pod)
			events.Add(marker())

			seen := g.await(t, kubetypes.ADD, "marker")
			if _, removed := seen["web"]; removed == kind.Kept {
				t.Errorf("the kubelet gets %v, want the pod kept: %v", seen, kind.Kept)
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.PodVanished)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// streamingLW answers only watches, as an API server that streams the initial list.
type streamingLW struct {
	t         *testing.T
	watchResp watch.Interface
	options   chan metav1.ListOptions
}

func (lw streamingLW) List(metav1.ListOptions) (runtime.Object, error) {
	lw.t.Error("the initial list is not streamed: the reflector fell back to a plain list")
	return &v1.PodList{}, nil
}

func (lw streamingLW) Watch(options metav1.ListOptions) (watch.Interface, error) {
	select {
	case lw.options <- options:
	default:
	}
	return lw.watchResp, nil
}

// The object of a pod that is deleted while the initial list is streamed never
// gets into a store.
func TestGuardDeletedEventInAStreamedList(t *testing.T) {
	for _, deleted := range []bool{true, false} {
		t.Run(map[bool]string{true: "with deletionTimestamp", false: "without deletionTimestamp"}[deleted], func(t *testing.T) {
			g := newGuardTest(t, kubetypes.ApiserverSource)
			pod := g.newPod(guardtest.Kinds()[0])
			g.source <- createSourceUpdate(pod)
			g.await(t, kubetypes.ADD, "web")
			events := watch.NewFake()
			options := make(chan metav1.ListOptions, 1)
			newSourceApiserverFromLW(streamingLW{t: t, watchResp: events, options: options}, g.source)
			if o := <-options; o.SendInitialEvents == nil || !*o.SendInitialEvents {
				t.Fatalf("watch options %+v do not request a streamed list", o)
			}

			events.Add(pod.DeepCopy())
			last := pod.DeepCopy()
			if deleted {
				guardtest.Delete(last)
			}
			events.Delete(last)
			events.Add(marker())
			events.Action(watch.Bookmark, &v1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "2", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}})

			seen := g.await(t, kubetypes.ADD, "marker")
			if _, removed := seen["web"]; removed != deleted {
				t.Errorf("the kubelet gets %v, want the pod removed: %v", seen, deleted)
			}
			if deleted {
				g.ExpectHolds(t, pod.UID)
			} else {
				g.ExpectHolds(t, pod.UID, guard.PodVanished)
			}
		})
	}
}

// An API server that answers, but with an empty list, as after the loss of etcd.
func TestGuardEmptyRelist(t *testing.T) {
	g := newGuardTest(t, kubetypes.ApiserverSource)
	var pods []*v1.Pod
	for _, name := range []string{"a", "b", "c"} {
		pod := CreateValidPod(name, "shop")
		pod.UID = types.UID(name)
		pod.Spec.Containers[0].Name = "ctr-" + name
		guardtest.Protect(pod)
		g.Run(pod)
		pods = append(pods, pod)
	}
	g.source <- createSourceUpdate(pods...)
	g.await(t, kubetypes.ADD, "c")

	g.source <- createSourceUpdate()
	g.source <- createSourceUpdate(marker())

	if seen := g.await(t, kubetypes.ADD, "marker"); len(seen) != 1 {
		t.Errorf("the kubelet gets %v, want only the marker", seen)
	}
	for _, pod := range pods {
		g.ExpectHolds(t, pod.UID, guard.PodVanished)
	}
}
