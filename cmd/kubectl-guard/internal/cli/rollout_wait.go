package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// rolloutWait awaits what installers do, and tells about it.
type rolloutWait struct {
	*settings
	timeout time.Duration
}

func (o *rolloutWait) addFlags(command *cobra.Command) {
	command.Flags().DurationVar(&o.timeout, "timeout", defaultRolloutTimeout, "How long nothing may move on any node of a pool before the command gives up; the roll-out goes on without it")
	_ = command.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
}

func (o *rolloutWait) check() error {
	if o.timeout <= 0 {
		return errors.New("--timeout must be positive")
	}
	return nil
}

// lookedAgain is enough for an installer that has refused to have looked once more,
// which it does every 15 seconds.
const lookedAgain = 45 * time.Second

// sleep waits for the time between two looks.
func (o *rolloutWait) sleep(ctx context.Context) error {
	select {
	case <-time.After(2 * o.poll):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await tells what happens on the nodes of a pool until all that are ready are done, or
// until one has failed.
func (o *rolloutWait) await(ctx context.Context, c *clients, p *nodePool, request rollout.Request) (poolProgress, error) {
	told := map[string]string{}
	these := namesOf(p.nodes)
	begun := o.now()
	moved := begun
	paused := false
	var problem error
	for {
		before := problem
		if problem = p.read(ctx, c.kube, 2*o.poll); problem == nil {
			p.nodes = onlyThese(p.nodes, these)
			if o.now().Sub(begun) > lookedAgain {
				p.forgetStale(rollout.Refused)
			}
			is, err := rollout.RequestOf(p.set)
			if err != nil {
				return poolProgress{}, fmt.Errorf("pool %s: %w", p.Name, err)
			}
			if is.ID() != request.ID() {
				return poolProgress{}, p.changedByOthers(is)
			}
			if now := rollout.Paused(p.set); now != paused {
				if paused = now; paused {
					fmt.Fprintf(o.Out, "%s: paused; kubectl guard rollout resume --pool %s goes on\n", p.Name, p.Name)
				} else {
					fmt.Fprintf(o.Out, "%s: goes on\n", p.Name)
				}
			}
			progress := p.progress(request)
			for _, node := range progress.nodes {
				if text := node.text(); told[node.node] != text {
					// What all nodes begin with, and what a table shows later, is left out.
					begins := told[node.node] == "" && node.step == stepPending && node.ready
					if !begins {
						fmt.Fprintf(o.Out, "%s/%s: %s\n", p.Name, node.node, text)
					}
					told[node.node] = text
					moved = o.now()
				}
			}
			switch {
			case progress.count(stepFailed) > 0:
				return progress, o.stopped(ctx, c, p, progress)
			case progress.finished():
				return progress, nil
			}
			if o.now().Sub(moved) > o.timeout {
				return progress, o.stuck(ctx, c, p, progress, request)
			}
		} else if before == nil && ctx.Err() == nil {
			// Not the end: API servers are restarted, too.
			o.warn("%v; it is asked again", problem)
		} else if o.now().Sub(moved) > o.timeout {
			return poolProgress{}, withCode(fmt.Errorf("nothing was seen for %s: %w", o.timeout, problem), exitTimeout)
		}
		if err := o.sleep(ctx); err != nil {
			return poolProgress{}, fmt.Errorf("interrupted; pool %s goes on in the cluster. kubectl guard rollout status shows it, kubectl guard rollout pause --pool %s lets no further node begin", p.Name, p.Name)
		}
	}
}

// stopped is the error for a pool in which a node failed: which, why, what to do.
func (o *rolloutWait) stopped(ctx context.Context, c *clients, p *nodePool, progress poolProgress) error {
	var text strings.Builder
	shown := 0
	for _, node := range progress.nodes {
		if node.step != stepFailed {
			continue
		}
		if shown++; shown > examples {
			fmt.Fprintf(&text, "and at %s more; kubectl get nodes -l %s=%s lists those that are marked\n", count(progress.count(stepFailed)-examples, "node"), rollout.StateLabel, rollout.StateFailed)
			break
		}
		fmt.Fprintf(&text, "pool %s stopped at node %s: %s\n", p.Name, node.node, node.text())
		for _, container := range node.report.Stopped {
			fmt.Fprintf(&text, "  container that does not run any more: %s\n", container)
		}
		if node.problem == nil && node.report.Now.Version != "" {
			fmt.Fprintf(&text, "  it runs %s now\n", kubeletText(node.report.Now))
		}
	}
	fmt.Fprintf(&text, "%d of %s done, %d in work, %d not begun.\n", progress.count(stepDone), count(len(progress.nodes), "node"), progress.count(stepWorking), progress.count(stepPending))
	fmt.Fprintf(&text, "What the installer did:\n")
	names := map[string]string{}
	// Without the names of the pods the commands are still right.
	_ = p.eachInstaller(ctx, c.kube, func(pod *corev1.Pod) { names[pod.Spec.NodeName] = pod.Name })
	failed := progress.named(stepFailed)
	for _, node := range failed[:min(len(failed), examples)] {
		if name := names[node]; name != "" {
			fmt.Fprintf(&text, "  kubectl logs -n %s %s\n", rollout.Namespace, name)
		}
		fmt.Fprintf(&text, "  kubectl describe node %s\n", node)
	}
	fmt.Fprintf(&text, "Then one of:\n")
	fmt.Fprintf(&text, "  kubectl guard rollout resume --pool %s                # the node was put right: try it again\n", p.Name)
	fmt.Fprintf(&text, "  kubectl guard rollout start --pool %s --image IMAGE   # another build\n", p.Name)
	fmt.Fprintf(&text, "  kubectl guard rollout undo --pool %s                  # back to what the pool had before", p.Name)
	return withCode(errors.New(text.String()), exitStopped)
}

// stuck is the error for a pool in which nothing moves.
func (o *rolloutWait) stuck(ctx context.Context, c *clients, p *nodePool, progress poolProgress, request rollout.Request) error {
	var text strings.Builder
	fmt.Fprintf(&text, "pool %s: nothing has moved for %s; %d of %s done", p.Name, o.timeout, progress.count(stepDone), count(len(progress.nodes), "node"))
	type installer struct{ name, why string }
	on := map[string]installer{}
	err := p.eachInstaller(ctx, c.kube, func(pod *corev1.Pod) { on[nodeOf(pod)] = installer{pod.Name, waitingFor(pod)} })
	if err != nil {
		fmt.Fprintf(&text, "\n  %v", err)
	}
	var lines []nodeLine
	for _, node := range progress.nodes {
		if node.step == stepDone {
			continue
		}
		line := nodeLine{node.node, node.node, node.text()}
		if len(progress.nodes) <= examples {
			line.label = "node " + node.node
		}
		switch pod, found := on[node.node]; {
		case err != nil:
		case !found:
			line.text += "; it has no installer"
		case pod.why != "" && len(progress.nodes) > examples:
			line.text += "; its installer: " + strings.ReplaceAll(pod.why, pod.name, "POD")
		case pod.why != "":
			line.text += fmt.Sprintf("; installer %s: %s", pod.name, pod.why)
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 {
		fmt.Fprintf(&text, "\n%s", grouped(lines))
	}
	if request.Target == rollout.Observe {
		fmt.Fprintf(&text, "\nNo node was changed.")
	} else {
		fmt.Fprintf(&text, "\nThe roll-out goes on by itself when what it waits for is there: kubectl guard rollout status --pool %s", p.Name)
	}
	return withCode(errors.New(text.String()), exitTimeout)
}

// nodeOf is the node of a DaemonSet's pod, also before it is bound.
func nodeOf(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	affinity := pod.Spec.Affinity
	if affinity == nil || affinity.NodeAffinity == nil || affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, match := range term.MatchFields {
			if match.Key == "metadata.name" && len(match.Values) == 1 {
				return match.Values[0]
			}
		}
	}
	return ""
}

// waitingFor says why a pod does not run.
func waitingFor(pod *corev1.Pod) string {
	for _, status := range pod.Status.ContainerStatuses {
		if waiting := status.State.Waiting; waiting != nil {
			return strings.TrimSuffix(waiting.Reason+": "+waiting.Message, ": ")
		}
		if ended := status.State.Terminated; ended != nil {
			return strings.TrimSuffix(fmt.Sprintf("ended with exit code %d: %s", ended.ExitCode, ended.Message), ": ")
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return strings.TrimSuffix(condition.Reason+": "+condition.Message, ": ")
		}
	}
	return ""
}

// complete awaits a pool and then asks its kubelets themselves.
func (o *rolloutWait) complete(ctx context.Context, c *clients, p *nodePool, request rollout.Request) error {
	start := o.now()
	progress, err := o.await(ctx, c, p, request)
	if err != nil {
		return err
	}
	versions, err := o.verify(ctx, c, p, progress, request)
	if err != nil {
		return err
	}
	done := progress.count(stepDone)
	fmt.Fprintf(o.Out, "%s: %d of %s done in %s: %s\n", p.Name, done, count(len(progress.nodes), "node"), seconds(o.now().Sub(start)), versions)
	if absent := progress.absent(); len(absent) > 0 {
		o.warn("%s not ready, and will be done when back: %s", areNodes(len(absent)), listed(absent))
	}
	return nil
}

// verify compares what the kubelets of a pool say with the request, and returns the
// versions and modes in words. Installers have seen the same from within; this is how
// everybody else sees it.
func (o *rolloutWait) verify(ctx context.Context, c *clients, p *nodePool, progress poolProgress, request rollout.Request) (string, error) {
	reports := map[string]*rollout.Report{}
	for _, node := range progress.nodes {
		if node.step == stepDone {
			reports[node.node] = node.report
		}
	}
	var done []corev1.Node
	for _, node := range p.nodes {
		if reports[node.Name] != nil {
			done = append(done, node)
		}
	}
	var errs []error
	var silent []nodeLine
	found := map[string]int{}
	for _, answer := range c.nodes.Ask(ctx, done) {
		report := reports[answer.Node.Name]
		is := rollout.Kubelet{Version: report.Now.Version}
		switch answer.State {
		case nodes.Guarded:
			is.Version, is.Mode = answer.Pods.Version, answer.Pods.Mode
		case nodes.Unguarded:
		default:
			silent = append(silent, nodeLine{"node " + answer.Node.Name, answer.Node.Name, fmt.Sprintf("reports %s; %s", kubeletText(report.Now), answer.Detail)})
			found[kubeletText(report.Now)]++
			continue
		}
		found[kubeletText(is)]++
		var wanted guard.Mode
		if request.Target.Guarded() {
			wanted = request.Target.Mode()
		}
		if is.Mode != wanted || is.Version != report.Now.Version {
			errs = append(errs, fmt.Errorf("node %s reports %s, but its kubelet says %s; look at the node before anything else is changed: kubectl guard status %s", answer.Node.Name, kubeletText(report.Now), kubeletText(is), answer.Node.Name))
		}
	}
	if len(silent) > 0 {
		o.warn("%s could not be asked whether what the installers report is so:\n%s", count(len(silent), "node"), grouped(silent))
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), "; "), firstErrors(errs)
}

// kubeletText is "v1.36.3+guard.0.1.0 in Audit".
func kubeletText(k rollout.Kubelet) string {
	if k.Mode == "" {
		return k.Version
	}
	return k.Version + " in " + string(k.Mode)
}

// watch looks at a pool for a while, and returns an error when a node of it gets worse.
func (o *rolloutWait) watch(ctx context.Context, c *clients, p *nodePool, request rollout.Request, while time.Duration) error {
	ready := map[string]bool{}
	for i := range p.nodes {
		ready[p.nodes[i].Name] = nodeReady(&p.nodes[i])
	}
	deadline := o.now().Add(while)
	for o.now().Before(deadline) {
		if err := o.sleep(ctx); err != nil {
			return errors.New("interrupted between two pools")
		}
		if err := p.read(ctx, c.kube, 2*o.poll); err != nil {
			continue // seen again at the next look
		}
		progress := p.progress(request)
		if progress.count(stepFailed) > 0 {
			return o.stopped(ctx, c, p, progress)
		}
		for i := range p.nodes {
			if name := p.nodes[i].Name; ready[name] && !nodeReady(&p.nodes[i]) {
				return fmt.Errorf("node %s of pool %s was changed and is not ready any more; find out why before the next pool", name, p.Name)
			}
		}
	}
	return nil
}
