package fleet

import (
	"context"
	"fmt"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// collect writes what explains a failure into the artifacts folder, before any
// clean-up removes it. It must not fail itself: it runs when something is broken
// already.
func collect(ctx context.Context) {
	artifacts := specLog.NewArtifacts(artifactsDir())
	for file, args := range map[string][]string{
		"nodes.yaml":  {"get", "nodes", "-o", "yaml"},
		"pods.txt":    {"get", "pods", "-A", "-o", "wide"},
		"webhook.txt": {"logs", "-n", webhookinstall.Namespace, "-l", webhookinstall.Selector, "--tail=1000", "--prefix"},
		"events.txt":  {"get", "events", "-n", "default", "--sort-by=.lastTimestamp"},
	} {
		answer := tryKubectl(ctx, args...)
		artifacts.Keep(file, []byte(answer.Output()), nil)
	}
	for _, scene := range scenes {
		answer := tryKubectl(ctx, "get", "deployments,replicasets,statefulsets,daemonsets,pods,events,poddisruptionbudgets", "-n", scene.namespace, "-o", "yaml")
		artifacts.Keep(scene.namespace+".yaml", []byte(answer.Output()), nil)
	}
	// Errors are kept as files.
	_ = inParallel(ownNodes(), func(node *kind.Node) error {
		running, err := node.Containers(ctx)
		text := ""
		for _, c := range running {
			text += fmt.Sprintf("%s %s/%s %s pid %d since %s\n", c.ID, c.PodNamespace, c.PodName, c.Name, c.PID, c.StartedAt.UTC().Format("15:04:05.000"))
		}
		artifacts.Keep(node.Name()+"-containers.txt", []byte(text), err)
		journal, err := node.Exec(ctx, "journalctl", "--unit=kubelet", "--no-pager", "--lines=3000")
		artifacts.Keep(node.Name()+"-kubelet.log", []byte(journal), err)
		if node.Guarded() {
			answer, err := askKubelet(ctx, node, guard.PodsPath)
			artifacts.Keep(node.Name()+"-guard-pods.json", answer, err)
		}
		return nil
	})
	framework.Progress("artifacts: %s", artifacts.Dir)
}
