package containers

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
)

func TestMissingDistinguishesRuns(t *testing.T) {
	before := []cri.Container{{ID: "1", Name: "a"}, {ID: "2", Name: "b"}}
	now := []cri.Container{{ID: "1", Name: "a"}, {ID: "3", Name: "b"}}
	assert.Equal(t, []cri.Container{{ID: "2", Name: "b"}}, Missing(before, now))
	assert.Empty(t, Missing(before, before))
}

func TestJudge(t *testing.T) {
	c := cri.Container{ID: "1", PodUID: "uid", Name: "web", Image: "image:1", Generation: 1}
	pod := func(changes ...func(*corev1.Pod)) []corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid", Generation: 1}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		p.Spec.Containers = []corev1.Container{{Name: "web", Image: "image:1"}}
		for _, change := range changes {
			change(&p)
		}
		return []corev1.Pod{p}
	}
	held, yes := []types.UID{"uid"}, map[types.UID]bool{"uid": true}
	ended := func(phase corev1.PodPhase, policy corev1.RestartPolicy) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.Phase, p.Spec.RestartPolicy = phase, policy }
	}
	failed := func(reason, message string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message, p.Spec.RestartPolicy = corev1.PodFailed, reason, message, corev1.RestartPolicyNever
		}
	}
	sidecar := func(p *corev1.Pod) {
		p.Spec.InitContainers, p.Spec.Containers = []corev1.Container{{Name: "web"}}, []corev1.Container{{Name: "main"}}
	}
	newer := func(image string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Generation, p.Spec.Containers[0].Image = 2, image }
	}
	for name, test := range map[string]struct {
		evidence Evidence
		want     Verdict
	}{
		"its deletion was requested":                     {Evidence{Deleted: yes, Pods: pod()}, Expected},
		"the kubelet does not have its pod":              {Evidence{}, Unclear},
		"its pod succeeded by itself, maybe":             {Evidence{Pods: pod(ended(corev1.PodSucceeded, corev1.RestartPolicyNever))}, Unclear},
		"its pod failed by itself, maybe":                {Evidence{Pods: pod(ended(corev1.PodFailed, corev1.RestartPolicyOnFailure))}, Unclear},
		"its pod succeeded and never ends by itself":     {Evidence{Pods: pod(ended(corev1.PodSucceeded, corev1.RestartPolicyAlways))}, Stopped},
		"a sidecar, and the others have succeeded":       {Evidence{Pods: pod(sidecar, ended(corev1.PodSucceeded, corev1.RestartPolicyNever))}, Expected},
		"a sidecar, and the others have failed":          {Evidence{Pods: pod(sidecar)}, Expected},
		"a sidecar, and another container runs":          {Evidence{Pods: pod(sidecar), Running: []cri.Container{{PodUID: "uid", Name: "main"}}}, Unclear},
		"its pod was rejected":                           {Evidence{Pods: pod(failed("OutOfcpu", ""))}, Stopped},
		"its pod was over its time":                      {Evidence{Pods: pod(failed("DeadlineExceeded", ""))}, Expected},
		"evicted from a node that is short of something": {Evidence{Pods: pod(failed("Evicted", "The node was low on resource: ephemeral-storage. "))}, Stopped},
		"evicted for the limit of its volume":            {Evidence{Pods: pod(failed("Evicted", `Usage of EmptyDir volume "x" exceeds the limit "1Mi". `))}, Expected},
		"evicted for the limit of a container":           {Evidence{Pods: pod(failed("Evicted", `Container web exceeded its local ephemeral storage limit "1Mi". `))}, Expected},
		"evicted for the limits of its containers":       {Evidence{Pods: pod(failed("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "))}, Expected},
		"nothing is known":                               {Evidence{Pods: pod()}, Unclear},
		"its probe has failed":                           {Evidence{Pods: pod(), FailedProbes: map[Key]bool{{"uid", "web"}: true}}, Expected},
		"the probe of another container":                 {Evidence{Pods: pod(), FailedProbes: map[Key]bool{{"uid", "x"}: true}}, Unclear},
		"its image was changed":                          {Evidence{Pods: pod(newer("image:2"))}, Expected},
		"its pod was changed, its image was not":         {Evidence{Pods: pod(newer("image:1"))}, Unclear},
		"its resources cannot be changed in place": {Evidence{Pods: pod(newer("image:1"), func(p *corev1.Pod) {
			p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: "memory", RestartPolicy: corev1.RestartContainer}}
		})}, Expected},
		"the guard would have kept its pod":    {Evidence{Pods: pod(), Audited: yes}, Stopped},
		"and its deletion was requested":       {Evidence{Pods: pod(), Audited: yes, Deleted: yes}, Expected},
		"held, and its object is gone":         {Evidence{Held: held}, Stopped},
		"held, and released":                   {Evidence{Held: held, Released: true}, Expected},
		"held, and its deletion was requested": {Evidence{Held: held, Deleted: yes}, Expected},
		"a static pod, by its mirror":          {Evidence{Pods: pod(failed("OutOfcpu", ""), func(p *corev1.Pod) { p.UID, p.Annotations = "other", map[string]string{mirrorAnnotation: "uid"} })}, Stopped},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, Judge(c, test.evidence))
		})
	}
}

func TestUnexplained(t *testing.T) {
	seen := []cri.Container{{ID: "1", PodUID: "deleted"}, {ID: "2", PodUID: "deleted"}, {ID: "3", PodUID: "other"}}
	evidence := Evidence{Deleted: map[types.UID]bool{"deleted": true}}
	for stops, want := range []int{0, 0, 0, 1, 2} {
		assert.Equal(t, want, Unexplained(stops, seen, evidence), "%d stops", stops)
	}
}

func TestAnnotate(t *testing.T) {
	pods := []corev1.Pod{
		{ObjectMeta: metav1.ObjectMeta{UID: "a", Generation: 3}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "image"}}}},
		{ObjectMeta: metav1.ObjectMeta{UID: "b", Annotations: map[string]string{sourceAnnotation: "file"}}},
	}
	before := []cri.Container{{PodUID: "a", Name: "web"}, {PodUID: "b", Name: "x"}, {PodUID: "c"}}
	assert.Equal(t, []cri.Container{{PodUID: "a", Name: "web", Image: "image", Generation: 3}, {PodUID: "b", Name: "x", Static: true}, {PodUID: "c"}}, Annotate(before, pods))
	assert.Empty(t, before[0].Image, "the list is copied")
}

func TestStrange(t *testing.T) {
	pod := func(uid types.UID, runs bool) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{}}}}
		if runs {
			p.Status.ContainerStatuses[0].State.Running = &corev1.ContainerStateRunning{}
		}
		return p
	}
	a := []cri.Container{{PodUID: "a"}}
	assert.Empty(t, Foreign(nil, nil))
	assert.Empty(t, Foreign(nil, []corev1.Pod{pod("a", false)}))
	assert.Empty(t, Foreign(a, []corev1.Pod{pod("a", true), pod("b", true)}))
	assert.Equal(t, "it shows 0 containers, and none of the 2 pods that run by the word of the kubelet", Foreign(nil, []corev1.Pod{pod("a", true), pod("b", true), pod("c", false)}))
	assert.Equal(t, "it shows 1 containers, and none of the 1 pods that run by the word of the kubelet", Foreign(a, []corev1.Pod{pod("b", true)}), "those of another runtime")
}
