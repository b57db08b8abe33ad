package node

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/rollout"
)

// inLine is a node that waits for nothing but a slot.
type inLine struct {
	node   *corev1.Node
	report rollout.Report
}

// queueForSlot requests a slot for a node that was inspected before. It is inspected again
// when it is its turn.
func (i *Installer) queueForSlot(ctx context.Context, s State) (*rollout.Report, error) {
	turn, err := i.Cluster.TakeSlot(ctx, s.inLine.node, s.requestID, false)
	if err != nil {
		return nil, err
	}
	if i.turn = turn; !turn.Slot {
		i.inLine.report.Message = turn.WaitReason
		return &i.inLine.report, nil
	}
	i.inLine, i.queried = nil, true
	return nil, nil
}

// takeSlot requests a slot for a node that was inspected.
func (i *Installer) takeSlot(ctx context.Context, s State) (_ *rollout.Report, err error) {
	i.queried, i.queriedToRefuse = true, s.refuses()
	i.turn, err = i.Cluster.TakeSlot(ctx, s.view.node, s.requestID, s.refuses())
	return nil, err
}

// waitForSlot puts a node that can be changed into the line.
func (i *Installer) waitForSlot(_ context.Context, s State) (*rollout.Report, error) {
	report := i.reportOn(s.view)
	report.Phase, report.Message = rollout.Waiting, s.turn.WaitReason
	if !s.refuses() {
		i.inLine = &inLine{node: s.view.node, report: report}
	}
	return &report, nil
}
