package protect

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestHowToDependsOnTheKind(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		kind, group, strategy string
		owner                 bool
		want                  string
	}{
		"Deployment":            {kind: "Deployment", group: "apps/v1", want: "starts a roll-out"},
		"StatefulSet":           {kind: "StatefulSet", group: "apps/v1", strategy: "RollingUpdate", want: "starts a roll-out"},
		"StatefulSet, OnDelete": {kind: "StatefulSet", group: "apps/v1", strategy: "OnDelete", want: "Running pods are not touched"},
		"ReplicaSet":            {kind: "ReplicaSet", group: "apps/v1", want: "Running pods are not touched"},
		"owned ReplicaSet":      {kind: "ReplicaSet", group: "apps/v1", owner: true, want: "controlled by Deployment web"},
		"Job":                   {kind: "Job", group: "batch/v1", want: "cannot be changed"},
		"CronJob":               {kind: "CronJob", group: "batch/v1", want: "the next ones take it"},
		"custom":                {kind: "CloneSet", group: "apps.example/v1", want: "up to the workload's controller"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": test.group, "kind": test.kind, "metadata": map[string]any{"name": "web-1", "namespace": "web"},
				"spec": map[string]any{"updateStrategy": map[string]any{"type": test.strategy}},
			}}
			if test.owner {
				controller := true
				object.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "d", Controller: &controller}})
			}
			text := howTo(object, []string{"spec", "template", "metadata", "labels"}, guard.ExplicitDeletionRequired)
			require.Contains(t, text, test.want)
			for _, line := range strings.Split(text, "\n") {
				require.LessOrEqual(t, len(line), 110, "a command to copy may be a little wider")
			}
		})
	}
}
