package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/version"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// poolPlan is what is to be done with a pool.
type poolPlan struct {
	*nodePool
	request rollout.Request
	// before is the DaemonSet of the pool as it was before the plan; nil: none.
	before *appsv1.DaemonSet
	// answers of the pool's kubelets, in the order of its nodes.
	answers []nodes.Answer
	held    []knownPod
	// left are the nodes that an earlier command has left out.
	left []string
	// attach: the pool was asked for this already.
	attach bool
	// complete: and nothing is left to do.
	complete bool
	// look is the request with which the installers only look, found what they reported.
	look  rollout.Request
	found poolProgress
}

// describe is "pool blue (2 nodes)".
func (p *poolPlan) describe() string {
	return fmt.Sprintf("pool %s (%s)", p.Name, count(len(p.nodes), "node"))
}

// observing is a request with which the installers only look.
func observing(request rollout.Request) rollout.Request {
	request.Target = rollout.Observe
	request.Attempt = rand.String(8)
	return request
}

// unaudited returns the nodes on which neither Audit nor Enforce runs.
func (p *poolPlan) unaudited() []string {
	var names []string
	for _, answer := range p.answers {
		audited := answer.Pods != nil && (answer.Pods.Mode == guard.Audit || answer.Pods.Mode == guard.Enforce)
		if !audited {
			names = append(names, answer.Node.Name)
		}
	}
	return names
}

// releases reports whether the change ends holds: Enforce goes.
func (p *poolPlan) releases() bool {
	return p.request.Target == rollout.Audit || p.request.Target == rollout.Stock
}

// plan reads the pools and says what is to be done. It changes nothing.
func (o *rolloutStartOptions) plan(ctx context.Context, c *clients, f *fleet) ([]*poolPlan, error) {
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
		p.queryKubelets(ctx, c.nodes)
	}
	return plans, nil
}

func (o *rolloutStartOptions) planPool(f *fleet, argument string) (*poolPlan, error) {
	name, selector, given := strings.Cut(argument, "=")
	pool := f.pool(name)
	switch {
	case pool != nil && pool.problem != nil:
		return nil, fmt.Errorf("--pool: pool %s cannot be read: %w", name, pool.problem)
	case pool == nil && !given:
		return nil, fmt.Errorf("--pool: there is no pool %s; to make one, say which nodes it has: --pool %s=SELECTOR", name, name)
	case pool == nil:
		pool = &nodePool{Pool: rollout.Pool{Name: name, Selector: selector, MaxUnavailable: 1}}
		if err := pool.Validate(); err != nil {
			return nil, fmt.Errorf("--pool %s: %w", argument, err)
		}
		f.fill(pool)
	case given && !sameSelector(selector, pool.Selector):
		return nil, fmt.Errorf("--pool: pool %s has the nodes with %s; to change that, uninstall it first, or make another pool with another name", name, pool.Selector)
	}
	if len(pool.nodes) == 0 {
		return nil, fmt.Errorf("--pool: no node matches %s, so pool %s is empty; see kubectl get nodes --show-labels", pool.Selector, name)
	}
	p := &poolPlan{nodePool: pool}
	p.left = pool.Without
	if pool.set != nil {
		p.before = pool.set.DeepCopy()
		// What could not be changed is looked at again.
		f.withAll(pool)
	}
	widened, err := o.widen(pool)
	if err != nil {
		return nil, err
	}
	if p.request, err = o.request(pool); err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	return p, p.compare(widened)
}

// widen sets how many nodes may be changed at a time, and reports whether that is
// another number than before. A share is one of the nodes that the pool has now.
func (o *rolloutStartOptions) widen(p *nodePool) (bool, error) {
	if o.maxUnavailable == "" {
		return false, nil
	}
	value := intstr.Parse(o.maxUnavailable)
	n, err := intstr.GetScaledValueFromIntOrPercent(&value, len(p.nodes), true)
	if err == nil && value.Type == intstr.Int {
		n = min(n, len(p.nodes))
	}
	if err != nil || n < 1 || n > len(p.nodes) {
		return false, fmt.Errorf("--max-unavailable: %q is neither a number from 1 nor a share from 1%% to 100%%", o.maxUnavailable)
	}
	changed := p.MaxUnavailable != n
	p.MaxUnavailable = n
	return changed, nil
}

// request is what the flags ask for on top of what the pool has.
func (o *rolloutStartOptions) request(p *nodePool) (rollout.Request, error) {
	var request rollout.Request
	if current := p.current(); current != nil {
		request = *current
	}
	request.ReleaseHeldUIDs, request.ReleaseHeld, request.StockVersion = nil, false, ""
	if o.image != "" && o.image != request.Image && o.image != request.ImageName {
		// These were of the image before.
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

// compare finds out whether the pool was asked for the same before.
func (p *poolPlan) compare(widened bool) error {
	current := p.current()
	if current == nil || widened || !sameRequest(*current, p.request) {
		return nil
	}
	template, err := rollout.RequestOf(p.set)
	if err != nil {
		return err
	}
	if template.Target == rollout.Observe {
		// A start was given up after its installers had looked.
		return nil
	}
	wanted, all := p.request, p.nodes
	p.request = *current
	p.without(p.left)
	progress := p.progress(*current)
	switch stateOf(p.set, progress, *current) {
	case poolStopped:
		return fmt.Errorf("pool %s was asked for this before and is stopped at node %s; put the node right and give kubectl guard rollout resume --pool %s, or start another image", p.Name, listed(progress.named(stepFailed)), p.Name)
	case poolPaused:
		return fmt.Errorf("pool %s was asked for this before and is paused; to go on, give kubectl guard rollout resume --pool %s", p.Name, p.Name)
	case poolComplete:
		if len(p.left) > 0 {
			// What was left out is looked at again.
			p.request, p.Without, p.nodes = wanted, nil, all
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
	p.nodes = slices.DeleteFunc(slices.Clone(p.nodes), func(node corev1.Node) bool { return slices.Contains(names, node.Name) })
}

// sameRequest reports whether b asks for nothing that a did not ask for.
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

func areNodes(n int) string {
	if n == 1 {
		return "1 node is"
	}
	return fmt.Sprintf("%d nodes are", n)
}

// listed names at most ten.
func listed(names []string) string {
	const shown = 10
	if len(names) > shown {
		return strings.Join(names[:shown], ", ") + fmt.Sprintf(" and %d more", len(names)-shown)
	}
	return strings.Join(names, ", ")
}

// overlaps returns an error for each node in two pools: two installers would change
// the same kubelet.
func overlaps(f *fleet, plans []*poolPlan) []error {
	pools := append([]*nodePool(nil), f.pools...)
	given := map[string]bool{}
	for _, p := range plans {
		if given[p.Name] {
			return []error{fmt.Errorf("--pool: pool %s is given twice", p.Name)}
		}
		given[p.Name] = true
		if p.set == nil {
			pools = append(pools, p.nodePool)
		}
	}
	var errs []error
	owner := map[string]string{}
	for _, p := range pools {
		for i := range p.nodes {
			name := p.nodes[i].Name
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

// askPool asks the kubelets of a pool.
func (p *poolPlan) queryKubelets(ctx context.Context, asker nodes.Asker) {
	p.answers = asker.Ask(ctx, p.nodes)
	p.held, _ = podsOf(p.answers, func(pod guard.PodState) bool { return len(pod.Holds) > 0 })
}

// showPlans prints the plans and returns those that leave something to do.
func (o *rolloutWait) showPlans(plans []*poolPlan, all bool) ([]*poolPlan, error) {
	var open []*poolPlan
	for _, p := range plans {
		fmt.Fprintf(o.Out, "Pool %s: %s with %s, %d at a time\n", p.Name, count(len(p.nodes), "node"), p.Selector, p.MaxUnavailable)
		if current := p.current(); current != nil {
			fmt.Fprintf(o.Out, "  now:  %s\n", requestText(*current))
		}
		fmt.Fprintf(o.Out, "  then: %s\n", requestText(p.request))
		for _, remark := range p.remarks() {
			fmt.Fprintf(o.Out, "  %s\n", remark)
		}
		fmt.Fprintln(o.Out)
		if err := o.showNodes(p, all); err != nil {
			return nil, err
		}
		fmt.Fprintln(o.Out)
		_, silent := podsOf(p.answers, func(guard.PodState) bool { return false })
		warnSilent(o.warn, silent, len(p.answers))
		if p.releases() && len(p.held) > 0 {
			o.showHeld(p)
		}
		switch {
		case p.complete:
			fmt.Fprintf(o.Out, "Pool %s is as asked for; there is nothing to do.\n\n", p.Name)
			continue
		case p.attach:
			fmt.Fprintf(o.Out, "Pool %s was asked for this before; the command goes on with it.\n\n", p.Name)
		}
		open = append(open, p)
	}
	return open, nil
}

// requestText is "Audit, image registry/installer:1".
func requestText(r rollout.Request) string {
	if r.Target == rollout.Stock {
		return "Stock, the kubelet that the node had before the first roll-out"
	}
	text := fmt.Sprintf("%s, image %s", r.Target, cmp.Or(r.ImageName, r.Image))
	if r.KubeletVersion != "" {
		text += ", kubelet " + r.KubeletVersion
	}
	return text
}

// remarks name the nodes of a pool that may be in it by accident.
func (p *poolPlan) remarks() []string {
	var controlPlane, virtual []string
	for i := range p.nodes {
		node := &p.nodes[i]
		_, is := node.Labels["node-role.kubernetes.io/control-plane"]
		_, was := node.Labels["node-role.kubernetes.io/master"]
		if is || was {
			controlPlane = append(controlPlane, node.Name)
		}
		if node.Labels["type"] == "virtual-kubelet" {
			virtual = append(virtual, node.Name)
		}
	}
	var remarks []string
	if len(controlPlane) > 0 {
		remarks = append(remarks, fmt.Sprintf("of the control plane: %s", listed(controlPlane)))
	}
	if len(virtual) > 0 {
		remarks = append(remarks, fmt.Sprintf("virtual, without a kubelet of its own (leave them out: %s,type!=virtual-kubelet): %s", p.Selector, listed(virtual)))
	}
	return remarks
}

// shownNodes is how many nodes a table has by default. Of more, those of a kind are a row.
const shownNodes = 20

// rowsOf makes one row of those that have the same cells but for those of the columns in
// each, which have names of nodes or numbers: of names ten are shown, numbers are added up.
func rowsOf(rows [][]any, each ...int) [][]any {
	type group struct {
		row []any
		n   int
		at  map[int][]string
		sum map[int]int64
	}
	var groups []*group
	index := map[string]*group{}
	for _, row := range rows {
		key := ""
		for i, cell := range row {
			if !slices.Contains(each, i) {
				key += fmt.Sprintf("%v\x00", cell)
			}
		}
		g := index[key]
		if g == nil {
			g = &group{row: slices.Clone(row), at: map[int][]string{}, sum: map[int]int64{}}
			index[key] = g
			groups = append(groups, g)
		}
		g.n++
		for _, i := range each {
			switch cell := row[i].(type) {
			case int64:
				g.sum[i] += cell
			case string:
				g.at[i] = append(g.at[i], cell)
			}
		}
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return b.n - a.n })
	var out [][]any
	for _, g := range groups {
		for _, i := range each {
			if sum, numbers := g.sum[i]; numbers {
				g.row[i] = sum
			} else if i == each[0] && g.n > 1 {
				g.row[i] = fmt.Sprintf("%d: %s", g.n, listed(g.at[i]))
			}
		}
		out = append(out, g.row)
	}
	return out
}

// showNodes prints what the nodes of a pool are now.
func (o *rolloutWait) showNodes(p *poolPlan, all bool) error {
	columns := []column{{name: "Node"}, {name: "Ready"}, {name: "State"}, {name: "Version"}, {name: "Mode"}, {name: "Protected"}, {name: "Held"}}
	var rows [][]any
	for i := range p.answers {
		status := statusOf(p.answers[i])
		row := []any{status.Node, yesNo(nodeReady(&p.answers[i].Node)), string(status.State), status.Version, none, none, none}
		if status.State == nodes.Guarded {
			row[4], row[5], row[6] = string(status.Mode), *status.Protected, *status.Held
		}
		rows = append(rows, row)
	}
	if len(rows) > shownNodes && !all {
		rows = rowsOf(rows, 0, 5, 6)
	}
	return table(o.Out, false, columns, rows)
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// showHeld prints the held pods that a change releases.
func (o *rolloutWait) showHeld(p *poolPlan) {
	fmt.Fprintf(o.Out, "%s held in pool %s, and stopped by the change as soon as the new kubelet runs, because\nwhat wants them stopped is still there:\n", arePods(len(p.held)), p.Name)
	for _, pod := range p.held {
		// All of them: the question is about these.
		fmt.Fprintf(o.Out, "  %s on %s (%s)\n", pod.key(), pod.Node, causesOf(pod.Holds, true))
	}
	fmt.Fprintln(o.Out)
}

func arePods(n int) string {
	if n == 1 {
		return "1 pod is"
	}
	return fmt.Sprintf("%d pods are", n)
}

// showFound prints what the installers found that only looked: what runs now, and
// what would run.
func (o *rolloutStartOptions) showFound(plans []*poolPlan) error {
	columns := []column{{name: "Pool"}, {name: "Node"}, {name: "Now"}, {name: "Mode"}, {name: "Then"}, {name: "Mode"}}
	var rows [][]any
	for _, p := range plans {
		for _, node := range p.found.nodes {
			row := []any{p.Name, node.node, none, none, none, string(p.request.Target)}
			if node.step == stepDone {
				row[2], row[4] = node.report.Now.Version, node.report.Offered.Version
				if mode := node.report.Now.Mode; mode != "" {
					row[3] = string(mode)
				}
			}
			rows = append(rows, row)
		}
	}
	if len(rows) > shownNodes && !o.all {
		rows = rowsOf(rows, 1)
	}
	if !o.yes {
		// The answer to the question before ends no line when it is not typed.
		fmt.Fprintln(o.Out)
	}
	if err := table(o.Out, false, columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	for _, p := range plans {
		if older := p.older(); len(older) > 0 {
			o.warn("pool %s: the image has an older patch release than %s now: %s", p.Name, areOn(len(older)), listed(older))
		}
	}
	return nil
}

func areOn(n int) string {
	if n == 1 {
		return "1 node runs"
	}
	return fmt.Sprintf("%d nodes run", n)
}

// older returns the nodes that would get an older release of Kubernetes than they run.
func (p *poolPlan) older() []string {
	var names []string
	for _, node := range p.found.nodes {
		if node.step != stepDone {
			continue
		}
		now, err := version.ParseGeneric(node.report.Now.Version)
		if err != nil {
			continue
		}
		then, err := version.ParseGeneric(node.report.Offered.Version)
		if err == nil && then.LessThan(now) {
			names = append(names, fmt.Sprintf("%s (%s)", node.node, node.report.Now.Version))
		}
	}
	return names
}

// pin ties the request of a pool to the kubelets that its nodes were offered when they
// looked: a tag can be moved in between.
func (p *poolPlan) pin() error {
	sums := map[string]string{}
	for _, node := range p.found.nodes {
		if node.step != stepDone || node.report.Offered.SHA256 == "" {
			continue
		}
		arch, sum := node.report.Architecture, node.report.Offered.SHA256
		if other := sums[arch]; other != "" && other != sum {
			return fmt.Errorf("pool %s: %s has two kubelets for %s, %.12s and, on node %s, %.12s: its tag was moved. Give every build a tag of its own, or name the image by its digest",
				p.Name, p.request.Image, arch, other, node.node, sum)
		}
		sums[arch] = sum
	}
	if len(sums) > 0 && len(p.request.KubeletChecksums) == 0 {
		p.request.KubeletChecksums = sums
	}
	versions := map[string]bool{}
	for _, node := range p.found.nodes {
		if node.step == stepDone {
			versions[node.report.Offered.Version] = true
		}
	}
	if p.request.KubeletVersion == "" && len(versions) == 1 {
		p.request.KubeletVersion = slices.Collect(maps.Keys(versions))[0]
	}
	return nil
}

// printSets prints the DaemonSets of the plans, ready for kubectl apply.
func (o *rolloutStartOptions) printSets(plans []*poolPlan) error {
	list := struct {
		APIVersion string           `json:"apiVersion"`
		Kind       string           `json:"kind"`
		Items      []map[string]any `json:"items"`
	}{APIVersion: "v1", Kind: "List"}
	for _, p := range plans {
		set, err := rollout.DaemonSet(p.Pool, p.request)
		if err != nil {
			return err
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(set)
		if err != nil {
			return fmt.Errorf("pool %s: convert its DaemonSet: %w", p.Name, err)
		}
		delete(object, "status")
		list.Items = append(list.Items, object)
	}
	return o.output.object(o.Out, &list)
}
