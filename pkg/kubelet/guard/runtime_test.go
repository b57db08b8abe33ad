package guard

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLastLineOfDefence(t *testing.T) {
	calls := map[string]func(internalapi.RuntimeService) error{
		"StopContainer p-uid-c": func(s internalapi.RuntimeService) error {
			return s.StopContainer(context.Background(), "p-uid-c", 30)
		},
		"RemoveContainer p-uid-c": func(s internalapi.RuntimeService) error {
			return s.RemoveContainer(context.Background(), "p-uid-c")
		},
		"StopPodSandbox p-uid-s": func(s internalapi.RuntimeService) error {
			return s.StopPodSandbox(context.Background(), "p-uid-s")
		},
		"RemovePodSandbox p-uid-s": func(s internalapi.RuntimeService) error {
			return s.RemovePodSandbox(context.Background(), "p-uid-s")
		},
	}
	unavailable := errors.New("unavailable")
	exited := func(f *fixture, p *v1.Pod) { f.runtime.setContainer(p, runtimeapi.ContainerState_CONTAINER_EXITED) }
	for name, test := range map[string]struct {
		options []func(*Configuration)
		pod     *v1.Pod
		before  func(*fixture, *v1.Pod)
		// err is what the call returns, wrapped; nil when it goes through.
		err error
		// silent: the refusal has no record, since nobody knows whose container it is.
		silent bool
	}{
		"protected pod":                 {err: ErrRefused},
		"container in an unknown state": {before: func(f *fixture, p *v1.Pod) { f.runtime.setContainer(p, runtimeapi.ContainerState_CONTAINER_UNKNOWN) }, err: ErrRefused},
		"container that has exited":     {before: exited},
		"container that never ran":      {before: func(f *fixture, p *v1.Pod) { f.runtime.setContainer(p, runtimeapi.ContainerState_CONTAINER_CREATED) }},
		"container that nobody knows":   {before: func(f *fixture, p *v1.Pod) { f.runtime.remove(p) }},
		"unprotected pod":               {pod: plainPod("p")},
		"evidence":                      {before: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }},
		"completed pod":                 {before: func(f *fixture, p *v1.Pod) { f.AllowCompletion(p.UID) }},
		"declared stop":                 {before: func(f *fixture, p *v1.Pod) { f.AllowStop(p, "p-uid-c") }},
		"restart":                       {before: func(f *fixture, p *v1.Pod) { f.AllowRestart(p) }},
		"exempt cause":                  {options: []func(*Configuration){allowing(RuntimeStop)}},
		"mode Audit":                    {options: []func(*Configuration){inMode(Audit)}},
		"mode Off":                      {options: []func(*Configuration){inMode(Off)}},
		"runtime that cannot list":      {before: func(f *fixture, _ *v1.Pod) { f.runtime.fail(unavailable) }, err: unavailable, silent: true},
		"containers of other pods first": {before: func(f *fixture, _ *v1.Pod) {
			f.runtime.run(plainPod("a"), runtimeapi.ContainerState_CONTAINER_RUNNING)
			f.runtime.unfiltered = true
		}, err: ErrRefused},
		"after a restart of the kubelet": {before: func(f *fixture, _ *v1.Pod) { clear(f.records) }, err: ErrRefused},
		"after a restart, labels unreadable": {before: func(f *fixture, _ *v1.Pod) {
			clear(f.records)
			f.runtime.failing["ListPodSandbox"] = unavailable
		}, err: unavailable, silent: true},
		"unprotected pod that the API delivered, labels unreadable": {pod: plainPod("p"), before: func(f *fixture, _ *v1.Pod) {
			f.runtime.failing["ListPodSandbox"] = unavailable
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for call, do := range calls {
				f := newFixture(t, test.options...)
				pod := test.pod
				if pod == nil {
					pod = protectedPod("p")
				}
				f.running(pod)
				if test.before != nil {
					test.before(f, pod)
				}
				err := do(f.RuntimeService(f.runtime))
				if test.err == nil {
					require.NoError(t, err, call)
					assert.Equal(t, []string{call}, f.runtime.done)
					continue
				}
				require.ErrorIs(t, err, test.err, call)
				assert.Empty(t, f.runtime.done, call)
				refused := 1.0
				if test.silent {
					refused = 0
				}
				assert.Equal(t, refused, f.series()["refused_kills_total{cause=RuntimeStop}"], call)
			}
		})
	}
	t.Run("names the call and the pod", func(t *testing.T) {
		f := newFixture(t)
		f.running(protectedPod("p"))
		assert.EqualError(t, f.RuntimeService(f.runtime).StopContainer(context.Background(), "p-uid-c", 0),
			"StopContainer of pod default/p: refused by the kubelet guard: the pod is protected and its deletion was not requested")
	})
	t.Run("a declared stop is forgotten with its container, and not before", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		service := f.RuntimeService(f.runtime)
		f.AllowStop(pod, "p-uid-c")
		f.runtime.failing["RemoveContainer"] = unavailable
		require.ErrorIs(t, service.RemoveContainer(context.Background(), "p-uid-c"), unavailable)
		assert.Len(t, f.stops, 1)
		delete(f.runtime.failing, "RemoveContainer")
		require.NoError(t, service.RemoveContainer(context.Background(), "p-uid-c"))
		assert.Empty(t, f.stops)
	})
	t.Run("a sandbox with one more container than was declared is kept", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.runtime.containers["sidecar"] = &runtimeapi.Container{Id: "sidecar", PodSandboxId: "p-uid-s",
			State: runtimeapi.ContainerState_CONTAINER_RUNNING, Labels: map[string]string{podUIDLabel: "p-uid"}}
		f.AllowStop(pod, "p-uid-c")
		require.ErrorIs(t, f.RuntimeService(f.runtime).StopPodSandbox(context.Background(), "p-uid-s"), ErrRefused)
	})
	t.Run("a new sandbox of an unknown pod is made as usual", func(t *testing.T) {
		f := newFixture(t)
		id, err := f.RuntimeService(f.runtime).RunPodSandbox(context.Background(),
			&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: "new"}}, "")
		require.NoError(t, err)
		assert.Equal(t, "new-s", id)
	})
	t.Run("no runtime is no runtime", func(t *testing.T) {
		assert.Nil(t, newFixture(t).RuntimeService(nil))
	})
}

func TestCheckKill(t *testing.T) {
	fromRuntime := func(pod *v1.Pod) *v1.Pod {
		made := &v1.Pod{}
		made.UID, made.Name, made.Namespace = pod.UID, pod.Name, pod.Namespace
		return made
	}
	for name, test := range map[string]struct {
		before func(*fixture, *v1.Pod)
		pod    func(*v1.Pod) *v1.Pod
		err    string
	}{
		"running pod":                       {err: "kill pod default/p: " + ErrRefused.Error()},
		"pod made up from the runtime":      {pod: fromRuntime, err: "kill pod default/p: " + ErrRefused.Error()},
		"deletion":                          {pod: deleted},
		"evidence, pod from the runtime":    {pod: fromRuntime, before: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }},
		"exited containers":                 {before: func(f *fixture, p *v1.Pod) { f.runtime.setContainer(p, runtimeapi.ContainerState_CONTAINER_EXITED) }},
		"completed pod":                     {before: func(f *fixture, p *v1.Pod) { f.AllowCompletion(p.UID) }},
		"pod whose cgroup may be recreated": {before: func(f *fixture, p *v1.Pod) { f.AllowRestart(p) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			if test.before != nil {
				test.before(f, pod)
			}
			if test.pod != nil {
				pod = test.pod(pod)
			}
			err := f.CheckKill(pod)
			if test.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrRefused)
			assert.EqualError(t, err, test.err)
		})
	}
}

func TestRefuseContainerChange(t *testing.T) {
	// As containerd responds: the list has what the kubelet requested, the status the
	// first of the image's tags, or of its digests.
	requested := func(image string) *runtimeapi.ImageSpec {
		return &runtimeapi.ImageSpec{Image: "sha256:4242", UserSpecifiedImage: image}
	}
	for name, test := range map[string]struct {
		spec   string
		image  *runtimeapi.ImageSpec
		status string
		err    error
		want   bool
	}{
		"same image": {spec: "app:1", image: requested("app:1"), status: "docker.io/library/app:1", want: true},
		"same image, whose other tag sorts first": {spec: "app:stable", image: requested("app:stable"), status: "docker.io/library/app:1", want: true},
		"same image of another registry, too":     {spec: "mirror.example/app:1", image: requested("mirror.example/app:1"), status: "docker.io/library/app:1", want: true},
		"same image by its digest":                {spec: "app@sha256:77", image: requested("app@sha256:77"), status: "docker.io/library/app:1", want: true},
		"same image in another spelling":          {spec: "index.example/app", image: requested("index.example/app"), status: "docker.io/library/app:latest", want: true},
		"another image":                           {spec: "app:2", image: requested("app:1"), status: "docker.io/library/app:1"},
		"another tag of the same image":           {spec: "app:1", image: requested("app:stable"), status: "app:1"},
		"another registry, the image's first tag": {spec: "app:1", image: requested("registry.example/team/app:1"), status: "registry.example/team/app:1"},
		"runtime that keeps no requested image":   {spec: "app:2", image: &runtimeapi.ImageSpec{Image: "sha256:4242"}, want: true},
		"runtime that does not respond":           {spec: "app:2", err: errors.New("unavailable"), want: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			f.runtime.images["p-uid-c"] = test.image
			f.runtime.statusImages["p-uid-c"] = &runtimeapi.ImageSpec{Image: test.status}
			f.runtime.failing["ListContainers"] = test.err
			container := &v1.Container{Name: "app", Image: test.spec}
			assert.Equal(t, test.want, f.RefuseContainerChange(pod, container, "p-uid-c"))
			assert.False(t, f.RefuseContainerChange(plainPod("p"), container, "p-uid-c"))
		})
	}
}
