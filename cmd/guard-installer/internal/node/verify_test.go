package node

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// whileVerified calls what happens on the node, with the number of the check, before the
// new kubelet responds.
func (w *world) whileVerified(installer *Installer, happens func(check int)) {
	check := 0
	installer.Ask = func(ctx context.Context, address, pin string) (kubelet.Answer, string, error) {
		if w.started == 2 {
			check++
			happens(check)
		}
		return w.ask(ctx, address, pin)
	}
}

// ends has a container end by itself.
func (w *world) ends(id string) {
	w.containers = slices.DeleteFunc(slices.Clone(w.containers), func(c cri.Container) bool { return c.ID == id })
}

func step(t *testing.T, installer *Installer) rollout.Report {
	t.Helper()
	report, err := installer.Step(context.Background())
	require.NoError(t, err)
	return report
}

func TestANodeWhereContainersComeAndGoIsVerified(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		for n := range 40 {
			name := fmt.Sprintf("job-%d", n)
			w.containers = append(w.containers, cri.Container{ID: name, PodUID: types.UID(name), Namespace: "ns", Pod: name, Name: "main"})
			pod := corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever}}
			pod.Namespace, pod.Name, pod.UID = "ns", name, types.UID(name)
			w.pods = append(w.pods, pod)
		}
		installer := w.installer(with(request(rollout.Audit), func(r *rollout.Request) {
			r.Settle.Duration, r.VerifyTimeout.Duration = 300*time.Millisecond, 1200*time.Millisecond
		}))
		installer.Poll = 5 * time.Millisecond
		next, last := 0, time.Now()
		// One ends every tenth of the settle time, and its status comes later.
		w.whileVerified(installer, func(int) {
			if time.Since(last) > 30*time.Millisecond && next < 40 {
				w.ends(fmt.Sprintf("job-%d", next))
				next, last = next+1, time.Now()
			}
		})
		report := step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
		assert.Greater(t, next, 4)
		assert.Contains(t, report.Message, "have ended since, by themselves or with their pods")
	})(t)
}

func TestWhatRestartsTheSettleTimeIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		installer := w.installer(brief(rollout.Audit))
		ask := w.ask
		checks := 0
		installer.Ask = func(ctx context.Context, address, pin string) (kubelet.Answer, string, error) {
			if checks++; w.started == 2 && checks%5 == 0 {
				return kubelet.Answer{}, "", fmt.Errorf("healthz says no")
			}
			return ask(ctx, address, pin)
		}
		installer.Poll = 10 * time.Millisecond
		report := step(t, installer)
		assert.Equal(t, rollout.RolledBack, report.Phase)
		assert.Equal(t, rollout.ReasonNotHealthy, report.Reason)
		assert.Regexp(t, `the settle time of 60ms started again \d+ times, the last time because: healthz says no`, report.Message)
	})
}

func TestAKubeletThatCannotSettleInTimeIsRolledBackAtOnce(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "sick"))
		started := time.Now()
		report := w.run(with(request(rollout.Audit), func(r *rollout.Request) {
			r.VerifyTimeout.Duration, r.Settle.Duration = 20*time.Second, 19800*time.Millisecond
		}))
		assert.Equal(t, rollout.RolledBack, report.Phase, report.Message)
		assert.Equal(t, rollout.ReasonNotHealthy, report.Reason)
		assert.Less(t, time.Since(started), 10*time.Second)
	})(t)
}

func TestWhatCountsAsStoppedByTheChange(t *testing.T) {
	const done, back = rollout.Done, rollout.RolledBack
	for name, c := range map[string]struct {
		// happens during the first checks of the new kubelet.
		happens func(w *world)
		want    rollout.Phase
		message string
	}{
		"it ended by itself":     {func(w *world) { w.ends("first-a") }, done, "1 of the 3"},
		"the kubelet stopped it": {func(w *world) { w.stop(w.containers[0]) }, back, "1 containers were stopped by the change: ns/a/main"},
		"its deletion was requested": {func(w *world) {
			w.stop(w.containers[0])
			now := metav1.Now()
			w.pods[0].DeletionTimestamp = &now
		}, done, "1 of the 3"},
		"it was deleted by force": {func(w *world) {
			w.stop(w.containers[0])
			w.pods = w.pods[1:]
		}, done, "1 of the 3"},
		"it was deleted by force, and another of its name exists": {func(w *world) {
			w.stop(w.containers[0])
			w.pods[0].UID = "another"
		}, done, "1 of the 3"},
		"the kubelet has lost its pod": {func(w *world) {
			w.stop(w.containers[0])
			w.lost, w.pods = w.pods[:1], w.pods[1:]
		}, back, "1 containers were stopped by the change: ns/a/main"},
		"one was stopped for its probe, one ended by itself": {func(w *world) {
			w.stop(w.containers[0])
			w.ends("first-b")
			w.probes = map[containers.Key]bool{{Pod: "uid-a", Name: "main"}: true}
		}, done, "2 of the 3"},
		"one was stopped for its new image, one ended by itself": {func(w *world) {
			w.stop(w.containers[0])
			w.ends("first-b")
			w.pods[0].Generation, w.pods[0].Spec.Containers = 2, []corev1.Container{{Name: "main", Image: "image:2"}}
		}, done, "2 of the 3"},
		"one that was started since is stopped with its pod, one ended by itself": {func(w *world) {
			w.stops++
			w.ends("first-b")
			w.containers = append(w.containers, cri.Container{ID: "new", PodUID: "uid-new", Namespace: "ns", Pod: "new", Name: "main"})
		}, done, "1 of the 3"},
		"the kubelet stopped more than there are reasons for": {func(w *world) {
			w.stop(w.containers[0])
			w.stop(w.containers[0])
			w.probes = map[containers.Key]bool{{Pod: "uid-a", Name: "main"}: true}
		}, back, "1 containers were stopped by the change: ns/b/main"},
		"the guard would have kept it": {func(w *world) {
			w.ends("first-a")
			w.held = []guard.PodState{{Namespace: "ns", Name: "a", UID: "uid-a", State: guard.Protected, Audited: []guard.HoldState{{LastAttempt: time.Now()}}}}
		}, back, "1 containers were stopped by the change: ns/a/main"},
		"the guard would have kept it from an earlier attempt": {func(w *world) {
			w.ends("first-a")
			w.held = []guard.PodState{{Namespace: "ns", Name: "a", UID: "uid-a", State: guard.Protected, Audited: []guard.HoldState{{LastAttempt: time.Now().Add(-time.Hour)}}}}
		}, done, "1 of the 3"},
		"the kubelet does not count": {func(w *world) {
			w.ends("first-a")
			w.stops = kubelet.NotCounted
		}, back, "whether the kubelet stopped them is not known, since the kubelet does not count what it stops: ns/a/main"},
		"the kubelet was started again": {func(w *world) {
			w.ends("first-a")
			require.NoError(w.t, w.start()) // as systemd does
		}, back, "whether the kubelet stopped them is not known, since the kubelet was started again: ns/a/main"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				for n := range w.pods {
					w.pods[n].Generation, w.pods[n].Spec.Containers = 1, []corev1.Container{{Name: "main", Image: "image:1"}}
				}
				installer := w.installer(brief(rollout.Audit))
				w.whileVerified(installer, func(check int) {
					if check == 2 {
						c.happens(w)
					}
				})
				report := step(t, installer)
				assert.Equal(t, c.want, report.Phase, report.Message)
				assert.Contains(t, report.Message, c.message)
				if c.want == back {
					assert.Equal(t, rollout.ReasonContainers, report.Reason)
				}
			})
		})
	}
}

// A resume verifies a kubelet that runs: what it has stopped by then does not count.
func TestAResumeDoesNotCountEarlierStops(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.image(program("version="+guardedVersion, "guarded", "kills"))
		holdsA(w)
		require.True(t, w.run(request(rollout.Enforce)).Kept)
		w.resume()
		installer := w.installer(request(rollout.Enforce))
		w.whileVerified(installer, func(check int) {
			if check == 2 {
				w.ends("first-a")
			}
		})
		w.held = nil
		report := step(t, installer)
		assert.Equal(t, rollout.Done, report.Phase, report.Message)
	})(t)
}

// runs gives a pod a container that runs by the word of the kubelet.
func runs(pod *corev1.Pod) {
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
}

func TestTheContainersOfAnotherRuntimeVerifyNothing(t *testing.T) {
	t.Run("before the change", inWorld(func(t *testing.T, w *world) {
		runs(&w.pods[0])
		w.containers = nil
		report := w.run(request(rollout.Audit))
		assert.Equal(t, rollout.Waiting, report.Phase)
		assert.Equal(t, rollout.ReasonRuntime, report.Reason)
		assert.Contains(t, report.Message, "/run/containerd/containerd.sock is not the container runtime of the kubelet: it shows 0 containers, and none of the 1 pods that run by the word of the kubelet")
		assert.Equal(t, 1, w.started)
	}))
	t.Run("since the change", inWorld(func(t *testing.T, w *world) {
		w.containers = nil
		installer := w.installer(brief(rollout.Audit))
		w.whileVerified(installer, func(int) { runs(&w.pods[0]) })
		report := step(t, installer)
		assert.Equal(t, rollout.RolledBack, report.Phase)
		assert.Equal(t, rollout.ReasonRuntime, report.Reason)
	}))
	t.Run("nothing runs", inWorld(func(t *testing.T, w *world) {
		w.containers, w.pods = nil, nil
		assert.Equal(t, rollout.Done, w.run(request(rollout.Audit)).Phase)
	}))
}

func TestOnlyAResumeOfTheFailedAttemptIsOne(t *testing.T) {
	for name, c := range map[string]struct {
		words []string
		left  bool
	}{
		"rolled back":   {[]string{"guarded", "nostart"}, false},
		"kept in place": {[]string{"guarded", "unhealthy"}, true},
	} {
		t.Run(name, inWorld(func(t *testing.T, w *world) {
			w.image(program(append(c.words, "version="+guardedVersion)...))
			holdsA(w)
			report := w.run(brief(rollout.Enforce))
			require.Equal(t, c.left, report.Kept)
			first, started := report.Attempt, w.started
			require.NotEmpty(t, first)

			for what, happens := range map[string]func(){
				"something strips the label": func() { delete(w.node.Labels, rollout.StateLabel) },
				"the Node is registered again": func() {
					w.node.Labels, w.node.Annotations = nil, nil
				},
				"another attempt was resumed": func() {
					metav1.SetMetaDataAnnotation(&w.node.ObjectMeta, rollout.ResumeAnnotation, "another")
				},
			} {
				happens()
				report = w.run(brief(rollout.Enforce))
				assert.Equal(t, first, report.Attempt, what)
				assert.Equal(t, started, w.started, what)
				assert.True(t, rollout.Marked(w.node), "%s: it is marked again", what)
			}

			// A resume counts once.
			w.resume()
			report = w.run(brief(rollout.Enforce))
			assert.NotEqual(t, first, report.Attempt)
			second, started := report.Attempt, w.started
			assert.Equal(t, second, w.run(brief(rollout.Enforce)).Attempt)
			assert.Equal(t, started, w.started)
		}))
	}
}

// The API server is queried seldom while a node settles, but always at the end.
func TestANodeThatIsNotReadyAtTheEndIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		installer := w.installer(with(request(rollout.Audit), func(r *rollout.Request) {
			r.Settle.Duration, r.VerifyTimeout.Duration = 100*time.Millisecond, 400*time.Millisecond
		}))
		installer.Poll = 40 * time.Millisecond // the next question after the settle time
		w.whileVerified(installer, func(check int) { w.unready = check > 1 })
		report := step(t, installer)
		assert.Equal(t, rollout.RolledBack, report.Phase)
		assert.Equal(t, rollout.ReasonNotReady, report.Reason)
		assert.Contains(t, report.Message, "node n is not ready")
	})
}
