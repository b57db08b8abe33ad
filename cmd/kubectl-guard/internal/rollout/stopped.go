package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

// stopped is the error for a pool in which a node failed: which, why, what to do.
func (o *waiter) stopped(ctx context.Context, c *factory.Clients, p *pool.Pool, progress pool.Progress) error {
	var text strings.Builder
	shown := 0
	for _, node := range progress.Nodes {
		if node.Step != pool.StepFailed {
			continue
		}
		if shown++; shown > printer.Examples {
			fmt.Fprintf(&text, "and at more nodes: %d; kubectl get nodes -l %s=%s lists those that are marked\n", progress.Count(pool.StepFailed)-printer.Examples, rollout.StateLabel, rollout.StateFailed)
			break
		}
		fmt.Fprintf(&text, "pool %s stopped at node %s: %s\n", p.Name, node.Node, node.Text())
		for _, container := range node.Report.Stopped {
			fmt.Fprintf(&text, "  container that does not run any more: %s\n", container)
		}
		if node.Problem == nil && node.Report.Now.Version != "" {
			fmt.Fprintf(&text, "  it runs %s now\n", kubeletText(node.Report.Now))
		}
	}
	fmt.Fprintf(&text, "Nodes: %d of %d done, %d in progress, %d not started.\n", progress.Count(pool.StepDone), len(progress.Nodes), progress.Count(pool.StepWorking), progress.Count(pool.StepPending))
	fmt.Fprintf(&text, "What the installer did:\n")
	names := map[string]string{}
	// Without the names of the pods the commands are still right.
	_ = p.EachInstaller(ctx, c.Kube, func(pod *corev1.Pod) { names[pod.Spec.NodeName] = pod.Name })
	failed := progress.Named(pool.StepFailed)
	for _, node := range failed[:min(len(failed), printer.Examples)] {
		if name := names[node]; name != "" {
			fmt.Fprintf(&text, "  kubectl logs -n %s %s\n", rollout.Namespace, name)
		}
		fmt.Fprintf(&text, "  kubectl describe node %s\n", node)
	}
	fmt.Fprintf(&text, "Then one of:\n")
	fmt.Fprintf(&text, "  kubectl guard rollout resume --pool %s                # the node was fixed: retry it\n", p.Name)
	fmt.Fprintf(&text, "  kubectl guard rollout start --pool %s --image IMAGE   # another build\n", p.Name)
	fmt.Fprintf(&text, "  kubectl guard rollout undo --pool %s                  # back to the previous request", p.Name)
	return exitcode.With(errors.New(text.String()), exitcode.Stopped)
}

// stalled is the error for a pool without progress.
func (o *waiter) stalled(ctx context.Context, c *factory.Clients, p *pool.Pool, progress pool.Progress, request rollout.Request) error {
	var text strings.Builder
	fmt.Fprintf(&text, "pool %s: no progress for %s; nodes done: %d of %d", p.Name, o.timeout, progress.Count(pool.StepDone), len(progress.Nodes))
	type installer struct{ name, why string }
	on := map[string]installer{}
	err := p.EachInstaller(ctx, c.Kube, func(pod *corev1.Pod) { on[pool.InstallerNode(pod)] = installer{pod.Name, pool.NotRunningReason(pod)} })
	if err != nil {
		fmt.Fprintf(&text, "\n  %v", err)
	}
	var lines []printer.NodeLine
	for _, node := range progress.Nodes {
		if node.Step == pool.StepDone {
			continue
		}
		line := printer.NodeLine{Label: node.Node, Name: node.Node, Text: node.Text()}
		if len(progress.Nodes) <= printer.Examples {
			line.Label = "node " + node.Node
		}
		switch pod, found := on[node.Node]; {
		case err != nil:
		case !found:
			line.Text += "; it has no installer"
		case pod.why != "" && len(progress.Nodes) > printer.Examples:
			line.Text += "; its installer: " + strings.ReplaceAll(pod.why, pod.name, "POD")
		case pod.why != "":
			line.Text += fmt.Sprintf("; installer %s: %s", pod.name, pod.why)
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 {
		fmt.Fprintf(&text, "\n%s", printer.Group(lines))
	}
	if request.Target == rollout.Observe {
		fmt.Fprintf(&text, "\nNo node was changed.")
	} else {
		fmt.Fprintf(&text, "\nThe roll-out continues by itself once the causes are gone: kubectl guard rollout status --pool %s", p.Name)
	}
	return exitcode.With(errors.New(text.String()), exitcode.Timeout)
}
