package app

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	deploymentUID types.UID = "d0000000-0000-4000-8000-000000000000"
	replicaSetUID types.UID = "e0000000-0000-4000-8000-000000000000"
)

// withDeployment is a cluster with the deployment web: two pods, one of them
// labelled, and other pods that look alike.
func withDeployment(t *testing.T) *cluster {
	c := newCluster(t,
		&fakeNode{name: "worker-1", version: guarded},
		&fakeNode{name: "worker-3", version: "v1.36.3", status: http.StatusNotFound},
	)
	c.owners["deployments/web"] = workloadObject("Deployment", "web", deploymentUID, "", map[string]any{"app": "web"})
	c.owners["replicasets/web-1"] = workloadObject("ReplicaSet", "web-1", replicaSetUID, deploymentUID, nil)
	c.owners["replicasets/other-1"] = workloadObject("ReplicaSet", "other-1", "f0000000-0000-4000-8000-000000000000", "", nil)
	web := labelled("app", "web")
	c.addPod("web", "web-1-a", 1, "worker-1", web, ownedBy("ReplicaSet", "web-1", replicaSetUID))
	c.addPod("web", "web-1-b", 2, "worker-3", web, ownedBy("ReplicaSet", "web-1", replicaSetUID), labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	c.addPod("web", "other-1-a", 3, "worker-1", web, ownedBy("ReplicaSet", "other-1", "f0000000-0000-4000-8000-000000000000"))
	c.addPod("web", "orphan-1", 4, "worker-1", web, ownedBy("ReplicaSet", "gone-1", "a0000000-0000-4000-8000-000000000000"))
	c.addPod("web", "single", 5, "worker-1", web)
	return c
}

func workloadObject(kind, name string, uid, controller types.UID, templateLabels map[string]any) map[string]any {
	metadata := map[string]any{"name": name, "namespace": "web", "uid": string(uid)}
	if controller != "" {
		metadata["ownerReferences"] = []any{map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": string(controller), "controller": true}}
	}
	return map[string]any{"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": map[string]any{
		"selector": map[string]any{"matchLabels": map[string]any{"app": "web"}},
		"template": map[string]any{"metadata": map[string]any{"labels": templateLabels}},
	}}
}

func labelPatch(name string, n int, value string) string {
	return fmt.Sprintf(`PATCH /api/v1/namespaces/web/pods/%s {"metadata":{"labels":{"%s":%s},"uid":"%s"}}`, name, guard.ExplicitDeletionLabel, value, uidOf(n))
}

func TestProtectLabelsThePodsOfAWorkloadAndNothingElse(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	r := c.mustRun("", "protect", "deploy/web")
	require.Equal(t, []string{labelPatch("web-1-a", 1, `"required"`)}, c.writes)
	golden(t, "protect.txt", r.out, false)
	require.Equal(t, "Warning: node worker-3 runs kubelet v1.36.3, which has no guard: the label has no effect there\n", r.errOut)
}

func TestProtectSinglePods(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	c.addPod("web", "static", 6, "worker-1", func(pod *corev1.Pod) {
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	})
	c.addPod("web", "done", 7, "worker-1", func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded })
	r := c.mustRun("", "protect", "pod/single", "pod/static", "pod/done", "pod/web-1-a")
	require.Equal(t, []string{labelPatch("single", 5, `"required"`), labelPatch("web-1-a", 1, `"required"`)}, c.writes)
	golden(t, "protect-pods.txt", r.out, false)
}

func TestProtectBySelector(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	r := c.mustRun("", "protect", "pods", "-l", guard.ExplicitDeletionLabel, "-o", "yaml")
	golden(t, "protect.yaml", r.out, false)
	require.Empty(t, c.writes)
}

func TestProtectDryRun(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	r := c.mustRun("", "protect", "deploy", "web", "--dry-run=client")
	require.Contains(t, r.out, "pod/web-1-a protected (dry run)\n")
	require.Empty(t, c.writes)

	r = c.mustRun("", "protect", "deploy", "web", "--dry-run=server")
	require.Contains(t, r.out, "pod/web-1-a protected (server dry run)\n")
	require.Len(t, c.writes, 1)
	require.Contains(t, c.writes[0], "?dryRun=All ")

	require.ErrorContains(t, c.run("", "protect", "deploy/web", "--dry-run=often").err, "must be none, client or server")
}

func TestProtectErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		arguments []string
		err       string
	}{
		"no argument":      {nil, "which pods?"},
		"not there":        {[]string{"deploy/nope"}, `deployments "nope" not found`},
		"no pods":          {[]string{"statefulset/idle"}, "statefulset/idle has no pods"},
		"not in namespace": {[]string{"node/worker-1"}, "not a pod and not a workload in a namespace"},
		"no such kind":     {[]string{"thing/web"}, `doesn't have a resource type "thing"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := withDeployment(t)
			c.owners["statefulsets/idle"] = workloadObject("StatefulSet", "idle", "c0000000-0000-4000-8000-000000000000", "", nil)
			r := c.run("", append([]string{"protect"}, test.arguments...)...)
			require.ErrorContains(t, r.err, test.err)
			require.Empty(t, r.out)
			require.Empty(t, c.writes)
		})
	}
}

func TestUnprotect(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	template := c.owners["deployments/web"]["spec"].(map[string]any)["template"].(map[string]any)["metadata"].(map[string]any)
	template["labels"] = map[string]any{"app": "web", guard.ExplicitDeletionLabel: guard.ExplicitDeletionRequired}
	r := c.mustRun("", "unprotect", "deploy/web")
	require.Equal(t, []string{labelPatch("web-1-b", 2, "null")}, c.writes)
	golden(t, "unprotect.txt", r.out, false)
	require.Empty(t, r.errOut)
}

func TestUnprotectOverridesInTheSameRequest(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	c.mustRun("", "unprotect", "deploy/web", "--override", " ticket 17 ")
	require.Equal(t, []string{fmt.Sprintf(
		`PATCH /api/v1/namespaces/web/pods/web-1-b {"metadata":{"annotations":{"kubelet-guard.io/override":"2026-11-22T12:15:00Z ticket 17"},"labels":{"%s":null},"uid":"%s"}}`,
		guard.ExplicitDeletionLabel, uidOf(2))}, c.writes)

	c = withDeployment(t)
	c.mustRun("", "unprotect", "deploy/web", "--override=x", "--override-for=1h")
	require.Len(t, c.writes, 1)
	require.Contains(t, c.writes[0], `"kubelet-guard.io/override":"2026-11-22T13:00:00Z x"`)
}

func TestUnprotectOverrideErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		arguments []string
		err       string
	}{
		"no reason":          {[]string{"--override="}, "--override: give the reason, such as --override 'ticket 17'"},
		"blank reason":       {[]string{"--override= "}, "--override: give the reason, such as --override 'ticket 17'"},
		"time without":       {[]string{"--override-for=1h"}, "--override-for goes with --override REASON"},
		"too short":          {[]string{"--override=x", "--override-for=1s"}, "--override-for: 1s is less than a minute"},
		"protect has no use": {[]string{"--override=x"}, "unknown flag: --override"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := withDeployment(t)
			verb := "unprotect"
			if name == "protect has no use" {
				verb = "protect"
			}
			require.EqualError(t, c.run("", append([]string{verb, "deploy/web"}, test.arguments...)...).err, test.err)
			require.Empty(t, c.writes)
		})
	}
}

func TestUnprotectAsksAboutHeldPods(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	c.pods["web/web-1-b"].Status.Conditions = []corev1.PodCondition{{Type: guard.PodKillRefused, Status: corev1.ConditionTrue, Reason: string(guard.Evicted)}}
	r := c.run("n\n", "unprotect", "deploy/web")
	require.ErrorContains(t, r.err, "not confirmed")
	require.Contains(t, r.out, "Pods held: 1. Without the label the kubelet does at once what it wanted to do:\n  web/web-1-b (Evicted)\n")
	require.Empty(t, c.writes)

	require.ErrorContains(t, c.run("", "unprotect", "deploy/web", "-o", "json").err, "give --yes to continue")
	require.Empty(t, c.writes)

	r = c.mustRun("", "unprotect", "deploy/web", "--yes")
	require.Len(t, c.writes, 1)
}
