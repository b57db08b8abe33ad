package pool

import (
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodeutil "k8s.io/component-helpers/node/util"

	"kubelet-guard.io/pkg/rollout"
)

// State is how far a pool is. The zero value is invalid.
type State string

const (
	// StateObserving: installers inspect the nodes and change nothing.
	StateObserving State = "Observing"
	// StateProgressing: nodes are being changed, or will be.
	StateProgressing State = "Progressing"
	// StatePaused: no further node is started.
	StatePaused State = "Paused"
	// StateStopped: a node failed, so no further node is started.
	StateStopped State = "Stopped"
	// StateUnreadable: its DaemonSet is not understood, for example one of a later release.
	StateUnreadable State = "Unreadable"
	// StateComplete: all nodes have converged.
	StateComplete State = "Complete"
)

// Step is how far a node is with a request. The zero value is invalid.
type Step string

const (
	// StepPending: its installer has not reported on this request.
	StepPending Step = "Pending"
	// StepWorking: its installer is changing it.
	StepWorking Step = "Working"
	// StepDone: the node has converged.
	StepDone Step = "Done"
	// StepFailed: the node has not converged, and needs action.
	StepFailed Step = "Failed"
)

// NodeProgress is what a node reports about a request.
type NodeProgress struct {
	Node string
	Step Step
	// Ready is the node's own condition.
	Ready bool
	// Report is the last one, also when it is about another request; nil: none.
	Report *rollout.Report
	// Problem is why the report cannot be read, or does not count.
	Problem error
	// Contradicted: the report is Done, and the Node has the version of another kubelet.
	Contradicted rollout.Reason
	// otherPool is the pool that the node belongs to, although this one selects it as well.
	otherPool string
}

// InOtherPool reports whether the node belongs to another pool, although this one selects it
// as well.
func (p NodeProgress) InOtherPool() bool { return p.otherPool != "" }

// Text is the line that is printed when the progress of the node changes.
func (p NodeProgress) Text() string {
	switch {
	case p.Problem != nil:
		return p.Problem.Error()
	case p.Step == StepPending && !p.Ready:
		return "Pending: the node is not ready"
	case p.otherPool != "":
		return fmt.Sprintf("Pending: its report is that of pool %s, which selects the node, too; a node must be in one pool only", p.otherPool)
	case p.Step == StepPending:
		return "Pending"
	case p.Report.Message == "":
		return string(p.Report.Phase)
	}
	return string(p.Report.Phase) + ": " + p.Report.Message
}

// Progress is how far a pool is with a request.
type Progress struct {
	Nodes []NodeProgress
	// available: Kubernetes has rolled the request out to the installers, and all of
	// those on nodes that are ready are ready themselves.
	available bool
}

// Count returns how many nodes are at the step.
func (p Progress) Count(step Step) int {
	n := 0
	for _, node := range p.Nodes {
		if node.Step == step {
			n++
		}
	}
	return n
}

// Named returns the names of the nodes at the step.
func (p Progress) Named(step Step) []string {
	var names []string
	for _, node := range p.Nodes {
		if node.Step == step {
			names = append(names, node.Node)
		}
	}
	return names
}

// away reports whether the node is not ready and will be changed when it is back. A node
// that is not ready in the middle of its change is not away: the change may be why.
func (p NodeProgress) away() bool {
	changing := p.Step == StepWorking && p.Report.Phase == rollout.Installing
	return !p.Ready && p.Step != StepDone && !changing
}

// Absent returns the nodes that are away.
func (p Progress) Absent() []string {
	var names []string
	for _, node := range p.Nodes {
		if node.away() {
			names = append(names, node.Node)
		}
	}
	return names
}

// Without is the progress of the other nodes.
func (p Progress) Without(names []string) Progress {
	p.Nodes = slices.DeleteFunc(slices.Clone(p.Nodes), func(node NodeProgress) bool { return slices.Contains(names, node.Node) })
	return p
}

// Finished reports whether all nodes that are not away are as requested.
func (p Progress) Finished() bool {
	for _, node := range p.Nodes {
		if node.Step != StepDone && !node.away() {
			return false
		}
	}
	return p.available
}

// Settled reports whether all nodes that are not away are done or have failed.
func (p Progress) Settled() bool {
	for _, node := range p.Nodes {
		if !node.away() && node.Step != StepDone && node.Step != StepFailed {
			return false
		}
	}
	return true
}

// Reported returns the reports of nodes at the step.
func (p Progress) Reported(step Step) map[string]*rollout.Report {
	reports := map[string]*rollout.Report{}
	for _, node := range p.Nodes {
		if node.Step == step {
			reports[node.Node] = node.Report
		}
	}
	return reports
}

// ForgetStale lets reports of the phase count again.
func (p *Pool) ForgetStale(phase rollout.Phase) {
	maps.DeleteFunc(p.Stale, func(_ string, report *rollout.Report) bool { return report.Phase == phase })
}

// Progress compares the reports of a pool's nodes with a request.
func (p *Pool) Progress(request rollout.Request) Progress {
	id := request.ID()
	var progress Progress
	ready := 0
	for i := range p.Nodes {
		n := NodeProgress{Node: p.Nodes[i].Name, Step: StepPending, Ready: NodeReady(&p.Nodes[i])}
		if n.Ready {
			ready++
		}
		n.Report, n.Problem = rollout.ReportOf(&p.Nodes[i])
		if n.Report != nil && n.Report.RequestID == id && n.Report.Pool == p.Name {
			n.Step = stepOf(n.Report.Phase)
			if stale := p.Stale[n.Node]; stale != nil && n.Report.Time.Equal(&stale.Time) {
				n.Step = StepPending
			}
		}
		if n.Report != nil && n.Report.Pool != p.Name && slices.Contains(p.shared[n.Node], n.Report.Pool) {
			n.otherPool = n.Report.Pool
		}
		if n.Step == StepDone {
			var why string
			if n.Contradicted, why = n.Report.Contradiction(&p.Nodes[i]); n.Contradicted != "" {
				n.Step = StepFailed
				n.Problem = fmt.Errorf("%s: %s; inspect the node before anything else is changed: kubectl guard status %s", n.Contradicted, why, n.Node)
			}
		}
		progress.Nodes = append(progress.Nodes, n)
	}
	status := p.Set.Status
	progress.available = status.ObservedGeneration >= p.Set.Generation &&
		int(status.UpdatedNumberScheduled) >= ready && int(status.NumberAvailable) >= ready
	return progress
}

// stepOf sorts the phases of an installer.
func stepOf(phase rollout.Phase) Step {
	switch {
	case phase == rollout.Observed, phase == rollout.Done:
		return StepDone
	case phase.Stopped():
		return StepFailed
	}
	return StepWorking
}

// StateOf is how far a pool is in one word.
func StateOf(set *appsv1.DaemonSet, p Progress, request rollout.Request) State {
	switch {
	case p.Count(StepFailed) > 0:
		return StateStopped
	case request.Target == rollout.Observe:
		return StateObserving
	case p.Finished():
		return StateComplete
	case set.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType:
		return StatePaused
	}
	return StateProgressing
}

// NodeReady reports whether the condition Ready of a node is true.
func NodeReady(node *corev1.Node) bool {
	_, condition := nodeutil.GetNodeCondition(&node.Status, corev1.NodeReady)
	return condition != nil && condition.Status == corev1.ConditionTrue
}
