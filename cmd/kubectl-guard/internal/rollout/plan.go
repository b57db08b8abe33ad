package rollout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// poolPlan is what is to be done with a pool.
type poolPlan struct {
	*pool.Pool
	request rollout.Request
	// before is the DaemonSet of the pool as it was before the plan; nil: none.
	before *appsv1.DaemonSet
	// responses of the pool's kubelets, in the order of its nodes.
	responses []nodes.Response
	held      []pods.Pod
	// left are the nodes that an earlier command has left out.
	left []string
	// attach: the pool already has this request.
	attach bool
	// complete: and it has converged.
	complete bool
	// inspection is the request with which the installers only inspect, found what they reported.
	inspection rollout.Request
	found      pool.Progress
}

// describe is "pool blue (nodes: 2)".
func (p *poolPlan) describe() string {
	return fmt.Sprintf("pool %s (nodes: %d)", p.Name, len(p.Nodes))
}

// inspection returns a request with which the installers only inspect.
func inspection(request rollout.Request) rollout.Request {
	request.Target = rollout.Observe
	request.Attempt = rand.String(8)
	return request
}

// unaudited returns the nodes on which neither Audit nor Enforce runs.
func (p *poolPlan) unaudited() []string {
	var names []string
	for _, response := range p.responses {
		audited := response.Pods != nil && (response.Pods.Mode == guard.Audit || response.Pods.Mode == guard.Enforce)
		if !audited {
			names = append(names, response.Node.Name)
		}
	}
	return names
}

// releases reports whether the change ends holds: Enforce goes.
func (p *poolPlan) releases() bool {
	return p.request.Target == rollout.Audit || p.request.Target == rollout.Stock
}

// plan reads the pools and returns what is to be done. It changes nothing.
func (o *startOptions) plan(ctx context.Context, c *factory.Clients, f *pool.Fleet) ([]*poolPlan, error) {
	var (
		plans []*poolPlan
		errs  []error
	)
	for _, argument := range o.pools {
		p, err := o.planPool(f, argument)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		plans = append(plans, p)
	}
	if err := errors.Join(append(errs, overlaps(f, plans)...)...); err != nil {
		return nil, err
	}
	for _, p := range plans {
		p.queryKubelets(ctx, c.Nodes)
	}
	return plans, nil
}

func (o *startOptions) planPool(f *pool.Fleet, argument string) (*poolPlan, error) {
	name, selector, given := strings.Cut(argument, "=")
	target := f.Pool(name)
	switch {
	case target != nil && target.Problem != nil:
		return nil, fmt.Errorf("--pool: pool %s cannot be read: %w", name, target.Problem)
	case target == nil && !given:
		return nil, fmt.Errorf("--pool: there is no pool %s; to make one, select its nodes: --pool %s=SELECTOR", name, name)
	case target == nil:
		target = &pool.Pool{Pool: rollout.Pool{Name: name, Selector: selector, MaxUnavailable: 1}}
		if err := target.Validate(); err != nil {
			return nil, fmt.Errorf("--pool %s: %w", argument, err)
		}
		f.Fill(target)
	case given && !sameSelector(selector, target.Selector):
		return nil, fmt.Errorf("--pool: pool %s has the nodes with %s; to change that, uninstall it first, or make another pool with another name", name, target.Selector)
	}
	if len(target.Nodes) == 0 {
		return nil, fmt.Errorf("--pool: no node matches %s, so pool %s is empty; see kubectl get nodes --show-labels", target.Selector, name)
	}
	p := &poolPlan{Pool: target}
	p.left = target.Without
	if target.Set != nil {
		p.before = target.Set.DeepCopy()
		// Nodes that could not be changed are inspected again.
		f.RestoreLeftOut(target)
	}
	widened, err := o.widen(target)
	if err != nil {
		return nil, err
	}
	if p.request, err = o.request(target); err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	return p, p.compare(widened)
}

// widen sets how many nodes may be changed at a time, and reports whether that is
// another number than before. A share is one of the nodes that the pool has now.
func (o *startOptions) widen(p *pool.Pool) (bool, error) {
	if o.maxUnavailable == "" {
		return false, nil
	}
	value := intstr.Parse(o.maxUnavailable)
	n, err := intstr.GetScaledValueFromIntOrPercent(&value, len(p.Nodes), true)
	if err == nil && value.Type == intstr.Int {
		n = min(n, len(p.Nodes))
	}
	if err != nil || n < 1 || n > len(p.Nodes) {
		return false, fmt.Errorf("--max-unavailable: %q is neither a number from 1 nor a share from 1%% to 100%%", o.maxUnavailable)
	}
	changed := p.MaxUnavailable != n
	p.MaxUnavailable = n
	return changed, nil
}

// request applies the flags to the request that the pool has.
func (o *startOptions) request(p *pool.Pool) (rollout.Request, error) {
	var request rollout.Request
	if current := p.Current(); current != nil {
		request = *current
	}
	request.ReleaseHeldUIDs, request.ReleaseHeld, request.StockVersion = nil, false, ""
	if o.image != "" && o.image != request.Image && o.image != request.ImageName {
		// These were of the previous image.
		request.Image, request.ImageName, request.KubeletVersion, request.KubeletChecksums = o.image, "", "", nil
	}
	if len(o.checksums) > 0 {
		request.KubeletChecksums = o.checksums
	}
	if o.version != "" {
		request.KubeletVersion = o.version
	}
	switch {
	case request.Image == "":
		return request, errors.New("which image? Give --image; make installer-image builds it")
	case o.mode == "" && !request.Target.Guarded():
		return request, errors.New("which mode? Give --mode=Audit or --mode=Enforce; Audit first is the documented order")
	case o.mode != "":
		request.Target = rollout.Target(o.mode)
	}
	if o.configuration != "" {
		data, err := os.ReadFile(o.configuration)
		if err != nil {
			return request, fmt.Errorf("--guard-config: %w", err)
		}
		request.Configuration = string(data)
	}
	if o.settle != 0 {
		request.Settle.Duration = o.settle
	}
	if o.verify != 0 {
		request.VerifyTimeout.Duration = o.verify
	}
	return request, request.Validate()
}

// compare finds out whether the pool already has this request.
func (p *poolPlan) compare(widened bool) error {
	current := p.Current()
	if current == nil || widened || !sameRequest(*current, p.request) {
		return nil
	}
	template, err := rollout.RequestOf(p.Set)
	if err != nil {
		return err
	}
	if template.Target == rollout.Observe {
		// A start was given up after its installers had inspected the nodes.
		return nil
	}
	wanted, all := p.request, p.Nodes
	p.request = *current
	p.without(p.left)
	progress := p.Progress(*current)
	switch pool.StateOf(p.Set, progress, *current) {
	case pool.StateStopped:
		return fmt.Errorf("pool %s already has this request and is stopped at node %s; fix the node and run kubectl guard rollout resume --pool %s, or start another image", p.Name, printer.Listed(progress.Named(pool.StepFailed)), p.Name)
	case pool.StatePaused:
		return fmt.Errorf("pool %s already has this request and is paused; to continue, run kubectl guard rollout resume --pool %s", p.Name, p.Name)
	case pool.StateComplete:
		if len(p.left) > 0 {
			// Nodes that were left out are inspected again.
			p.request, p.Without, p.Nodes = wanted, nil, all
			return nil
		}
		p.complete = true
	}
	p.attach = true
	return nil
}

// without leaves nodes out of the plan.
func (p *poolPlan) without(names []string) {
	if len(names) == 0 {
		return
	}
	p.Without = names
	p.Nodes = slices.DeleteFunc(slices.Clone(p.Nodes), func(node corev1.Node) bool { return slices.Contains(names, node.Name) })
}

// sameRequest reports whether b requests nothing that a does not.
func sameRequest(a, b rollout.Request) bool {
	if len(b.KubeletChecksums) == 0 {
		b.KubeletChecksums = a.KubeletChecksums
	}
	if b.KubeletVersion == "" {
		b.KubeletVersion = a.KubeletVersion
	}
	a.ReleaseHeldUIDs, a.ReleaseHeld, b.ReleaseHeldUIDs, b.ReleaseHeld = nil, false, nil, false
	return a.ID() == b.ID()
}

// overlaps returns an error for each node in two pools: two installers would change
// the same kubelet.
func overlaps(f *pool.Fleet, plans []*poolPlan) []error {
	pools := append([]*pool.Pool(nil), f.Pools...)
	given := map[string]bool{}
	for _, p := range plans {
		if given[p.Name] {
			return []error{fmt.Errorf("--pool: pool %s is given twice", p.Name)}
		}
		given[p.Name] = true
		if p.Set == nil {
			pools = append(pools, p.Pool)
		}
	}
	var errs []error
	owner := map[string]string{}
	for _, p := range pools {
		for i := range p.Nodes {
			name := p.Nodes[i].Name
			if other, taken := owner[name]; taken && (given[other] || given[p.Name]) {
				errs = append(errs, fmt.Errorf("--pool: node %s is in pool %s and in pool %s; choose selectors that share no node", name, other, p.Name))
			}
			owner[name] = p.Name
		}
	}
	return errs
}

func sameSelector(a, b string) bool {
	left, err := labels.Parse(a)
	if err != nil {
		return false
	}
	right, err := labels.Parse(b)
	return err == nil && left.String() == right.String()
}

// queryKubelets queries the kubelets of the pool.
func (p *poolPlan) queryKubelets(ctx context.Context, querier nodes.Querier) {
	p.responses = querier.Each(ctx, p.Nodes)
	p.held, _ = pods.Select(p.responses, func(pod guard.PodState) bool { return len(pod.Holds) > 0 })
}
