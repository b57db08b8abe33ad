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
// labelled, and pods beside it that look alike.
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
	r := c.run("", "protect", "deploy/web")
	require.NoError(t, r.err)
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
	r := c.run("", "protect", "pod/single", "pod/static", "pod/done", "pod/web-1-a")
	require.NoError(t, r.err)
	require.Equal(t, []string{labelPatch("single", 5, `"required"`), labelPatch("web-1-a", 1, `"required"`)}, c.writes)
	golden(t, "protect-pods.txt", r.out, false)
}

func TestProtectBySelector(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	r := c.run("", "protect", "pods", "-l", guard.ExplicitDeletionLabel, "-o", "yaml")
	require.NoError(t, r.err)
	golden(t, "protect.yaml", r.out, false)
	require.Empty(t, c.writes)
}

func TestProtectDryRun(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	r := c.run("", "protect", "deploy", "web", "--dry-run=client")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "pod/web-1-a protected (dry run)\n")
	require.Empty(t, c.writes)

	r = c.run("", "protect", "deploy", "web", "--dry-run=server")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "pod/web-1-a protected (server dry run)\n")
	require.Len(t, c.writes, 1)
	require.Contains(t, c.writes[0], "?dryRun=All ")

	r = c.run("", "protect", "deploy/web", "--dry-run=often")
	require.ErrorContains(t, r.err, "must be none, client or server")
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
