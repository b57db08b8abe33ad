package app

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestUnprotect(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	template := c.owners["deployments/web"]["spec"].(map[string]any)["template"].(map[string]any)["metadata"].(map[string]any)
	template["labels"] = map[string]any{"app": "web", guard.ExplicitDeletionLabel: guard.ExplicitDeletionRequired}
	r := c.run("", "unprotect", "deploy/web")
	require.NoError(t, r.err)
	require.Equal(t, []string{labelPatch("web-1-b", 2, "null")}, c.writes)
	golden(t, "unprotect.txt", r.out, false)
	require.Empty(t, r.errOut)
}

func TestUnprotectOverridesInTheSameRequest(t *testing.T) {
	t.Parallel()
	c := withDeployment(t)
	r := c.run("", "unprotect", "deploy/web", "--override", " ticket 17 ")
	require.NoError(t, r.err)
	require.Equal(t, []string{fmt.Sprintf(
		`PATCH /api/v1/namespaces/web/pods/web-1-b {"metadata":{"annotations":{"kubelet-guard.io/override":"2026-11-22T12:15:00Z ticket 17"},"labels":{"%s":null},"uid":"%s"}}`,
		guard.ExplicitDeletionLabel, uidOf(2))}, c.writes)

	c = withDeployment(t)
	r = c.run("", "unprotect", "deploy/web", "--override=x", "--override-for=1h")
	require.NoError(t, r.err)
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
			r := c.run("", append([]string{verb, "deploy/web"}, test.arguments...)...)
			require.EqualError(t, r.err, test.err)
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

	r = c.run("", "unprotect", "deploy/web", "-o", "json")
	require.ErrorContains(t, r.err, "give --yes to continue")
	require.Empty(t, c.writes)

	r = c.run("", "unprotect", "deploy/web", "--yes")
	require.NoError(t, r.err)
	require.Len(t, c.writes, 1)
}
