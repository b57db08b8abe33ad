package cli

import (
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/rollout"
)

// poolState says how far a pool is. The zero value is invalid.
type poolState string

const (
	// poolObserving: installers look at the nodes and change nothing.
	poolObserving poolState = "Observing"
	// poolProgressing: nodes are being changed, or will be.
	poolProgressing poolState = "Progressing"
	// poolPaused: no further node is begun.
	poolPaused poolState = "Paused"
	// poolStopped: a node failed, so no further node is begun.
	poolStopped poolState = "Stopped"
	// poolUnreadable: its DaemonSet is not understood, one of a later release, say.
	poolUnreadable poolState = "Unreadable"
	// poolComplete: all nodes are as asked for.
	poolComplete poolState = "Complete"
)

// nodeStep says how far a node is with what was asked for. The zero value is
// invalid.
type nodeStep string

const (
	// stepPending: its installer has not said anything about this request.
	stepPending nodeStep = "Pending"
	// stepWorking: its installer is at it.
	stepWorking nodeStep = "Working"
	// stepDone: the node is as asked for.
	stepDone nodeStep = "Done"
	// stepFailed: the node is not as asked for, and stays so until somebody acts.
	stepFailed nodeStep = "Failed"
)

// nodeProgress is what a node reports about a request.
type nodeProgress struct {
	node string
	step nodeStep
	// ready is the node's own condition.
	ready bool
	// report is the last one, also when it is about another request; nil: none.
	report *rollout.Report
	// problem says why the report cannot be read, or does not count.
	problem error
	// contradicted: the report says Done, and the Node says otherwise.
	contradicted rollout.Reason
	// otherPool is the pool that the node belongs to, although this one selects it as well.
	otherPool string
}

// text is the line that is printed when the progress of the node changes.
func (p nodeProgress) text() string {
	switch {
	case p.problem != nil:
		return p.problem.Error()
	case p.step == stepPending && !p.ready:
		return "Pending: the node is not ready"
	case p.otherPool != "":
		return fmt.Sprintf("Pending: its report is that of pool %s, which selects the node, too; a node must be in one pool only", p.otherPool)
	case p.step == stepPending:
		return "Pending"
	case p.report.Message == "":
		return string(p.report.Phase)
	}
	return string(p.report.Phase) + ": " + p.report.Message
}

// poolProgress is how far a pool is with a request.
type poolProgress struct {
	nodes []nodeProgress
	// available: Kubernetes has rolled the request out to the installers, and all of
	// those on nodes that are ready are ready themselves.
	available bool
}

// count returns how many nodes are at the step.
func (p poolProgress) count(step nodeStep) int {
	n := 0
	for _, node := range p.nodes {
		if node.step == step {
			n++
		}
	}
	return n
}

// named returns the names of the nodes at the step.
func (p poolProgress) named(step nodeStep) []string {
	var names []string
	for _, node := range p.nodes {
		if node.step == step {
			names = append(names, node.node)
		}
	}
	return names
}

// away reports whether the node is not ready and will be changed when it is back. A node
// that is not ready in the middle of its change is not away: the change may be why.
func (p nodeProgress) away() bool {
	changing := p.step == stepWorking && p.report.Phase == rollout.Installing
	return !p.ready && p.step != stepDone && !changing
}

// absent returns the nodes that are away.
func (p poolProgress) absent() []string {
	var names []string
	for _, node := range p.nodes {
		if node.away() {
			names = append(names, node.node)
		}
	}
	return names
}

// without is the progress of the other nodes.
func (p poolProgress) without(names []string) poolProgress {
	p.nodes = slices.DeleteFunc(slices.Clone(p.nodes), func(node nodeProgress) bool { return slices.Contains(names, node.node) })
	return p
}

// finished reports whether all nodes that are not away are as requested.
func (p poolProgress) finished() bool {
	for _, node := range p.nodes {
		if node.step != stepDone && !node.away() {
			return false
		}
	}
	return p.available
}

// settled reports whether all nodes that are not away are done or have failed.
func (p poolProgress) settled() bool {
	for _, node := range p.nodes {
		if !node.away() && node.step != stepDone && node.step != stepFailed {
			return false
		}
	}
	return true
}

// reported returns the reports of nodes at the step.
func (p poolProgress) reported(step nodeStep) map[string]*rollout.Report {
	reports := map[string]*rollout.Report{}
	for _, node := range p.nodes {
		if node.step == step {
			reports[node.node] = node.report
		}
	}
	return reports
}

// forgetStale lets reports of the phase count again.
func (p *nodePool) forgetStale(phase rollout.Phase) {
	maps.DeleteFunc(p.stale, func(_ string, report *rollout.Report) bool { return report.Phase == phase })
}

// progress compares the reports of a pool's nodes with a request.
func (p *nodePool) progress(request rollout.Request) poolProgress {
	id := request.ID()
	var progress poolProgress
	ready := 0
	for i := range p.nodes {
		n := nodeProgress{node: p.nodes[i].Name, step: stepPending, ready: nodeReady(&p.nodes[i])}
		if n.ready {
			ready++
		}
		n.report, n.problem = rollout.ReportOf(&p.nodes[i])
		if n.report != nil && n.report.RequestID == id && n.report.Pool == p.Name {
			n.step = stepOf(n.report.Phase)
			if stale := p.stale[n.node]; stale != nil && n.report.Time.Equal(&stale.Time) {
				n.step = stepPending
			}
		}
		if n.report != nil && n.report.Pool != p.Name && slices.Contains(p.shared[n.node], n.report.Pool) {
			n.otherPool = n.report.Pool
		}
		if n.step == stepDone {
			var why string
			if n.contradicted, why = n.report.Contradiction(&p.nodes[i]); n.contradicted != "" {
				n.step = stepFailed
				n.problem = fmt.Errorf("%s: %s; look at the node before anything else is changed: kubectl guard status %s", n.contradicted, why, n.node)
			}
		}
		progress.nodes = append(progress.nodes, n)
	}
	status := p.set.Status
	progress.available = status.ObservedGeneration >= p.set.Generation &&
		int(status.UpdatedNumberScheduled) >= ready && int(status.NumberAvailable) >= ready
	return progress
}

// stepOf sorts the phases of an installer.
func stepOf(phase rollout.Phase) nodeStep {
	switch {
	case phase == rollout.Observed, phase == rollout.Done:
		return stepDone
	case phase.Stopped():
		return stepFailed
	}
	return stepWorking
}

// stateOf is how far a pool is in one word.
func stateOf(set *appsv1.DaemonSet, p poolProgress, request rollout.Request) poolState {
	switch {
	case p.count(stepFailed) > 0:
		return poolStopped
	case request.Target == rollout.Observe:
		return poolObserving
	case p.finished():
		return poolComplete
	case set.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType:
		return poolPaused
	}
	return poolProgressing
}

func nodeReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}
