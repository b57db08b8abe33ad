package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// finish awaits a pool and then queries its kubelets themselves.
func (o *waiter) finish(ctx context.Context, c *factory.Clients, p *pool.Pool, request rollout.Request) error {
	start := o.Now()
	progress, err := o.await(ctx, c, p, request)
	if err != nil {
		return err
	}
	versions, err := o.verify(ctx, c, p, progress, request)
	if err != nil {
		return err
	}
	done := progress.Count(pool.StepDone)
	fmt.Fprintf(o.Out, "%s: nodes done: %d of %d in %s: %s\n", p.Name, done, len(progress.Nodes), printer.Seconds(o.Now().Sub(start)), versions)
	if absent := progress.Absent(); len(absent) > 0 {
		o.Warn("nodes that are not ready, and will be changed when they are: %s", printer.Listed(absent))
	}
	return nil
}

// verify compares the responses of the kubelets of a pool with the request, and returns the
// versions and modes in words. Installers have seen the same from within; this is how
// everybody else sees it.
func (o *waiter) verify(ctx context.Context, c *factory.Clients, p *pool.Pool, progress pool.Progress, request rollout.Request) (string, error) {
	reports := map[string]*rollout.Report{}
	for _, node := range progress.Nodes {
		if node.Step == pool.StepDone {
			reports[node.Node] = node.Report
		}
	}
	var done []corev1.Node
	for _, node := range p.Nodes {
		if reports[node.Name] != nil {
			done = append(done, node)
		}
	}
	var errs []error
	var silent []printer.NodeLine
	found := map[string]int{}
	for _, response := range c.Nodes.Each(ctx, done) {
		report := reports[response.Node.Name]
		is := rollout.Kubelet{Version: report.Now.Version}
		switch response.State {
		case nodes.Guarded:
			is.Version, is.Mode = response.Pods.Version, response.Pods.Mode
		case nodes.Unguarded:
		default:
			silent = append(silent, printer.NodeLine{Label: "node " + response.Node.Name, Name: response.Node.Name, Text: fmt.Sprintf("reports %s; %s", kubeletText(report.Now), response.Detail)})
			found[kubeletText(report.Now)]++
			continue
		}
		found[kubeletText(is)]++
		var wanted guard.Mode
		if request.Target.Guarded() {
			wanted = request.Target.Mode()
		}
		if is.Mode != wanted || is.Version != report.Now.Version {
			errs = append(errs, fmt.Errorf("node %s reports %s, but its kubelet responds with %s; inspect the node before anything else is changed: kubectl guard status %s", response.Node.Name, kubeletText(report.Now), kubeletText(is), response.Node.Name))
		}
	}
	if len(silent) > 0 {
		o.Warn("kubelets that could not be queried to confirm the reports of their installers:\n%s", printer.Group(silent))
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), "; "), printer.FirstErrors(errs)
}

// kubeletText is "v1.36.3+guard.0.1.0 in Audit".
func kubeletText(k rollout.Kubelet) string {
	if k.Mode == "" {
		return k.Version
	}
	return k.Version + " in " + string(k.Mode)
}

// watch observes a pool for a while, and returns an error when a node of it gets worse.
func (o *waiter) watch(ctx context.Context, c *factory.Clients, p *pool.Pool, request rollout.Request, while time.Duration) error {
	ready := map[string]bool{}
	for i := range p.Nodes {
		ready[p.Nodes[i].Name] = pool.NodeReady(&p.Nodes[i])
	}
	deadline := o.Now().Add(while)
	for o.Now().Before(deadline) {
		if err := o.sleep(ctx); err != nil {
			return errors.New("interrupted between two pools")
		}
		if err := p.Refresh(ctx, c.Kube); err != nil {
			continue // retried
		}
		progress := p.Progress(request)
		if progress.Count(pool.StepFailed) > 0 {
			return o.stopped(ctx, c, p, progress)
		}
		for i := range p.Nodes {
			if name := p.Nodes[i].Name; ready[name] && !pool.NodeReady(&p.Nodes[i]) {
				return fmt.Errorf("node %s of pool %s was changed and is not ready any more; find out why before the next pool", name, p.Name)
			}
		}
	}
	return nil
}
