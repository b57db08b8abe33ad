package node

import (
	"context"

	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/pkg/rollout"
)

// queueForSlot requests a slot for a node that was inspected before. It is inspected again
// when it is its turn.
func (i *Installer) queueForSlot(ctx context.Context, s State) (*rollout.Report, error) {
	turn, err := i.Cluster.TakeSlot(ctx, s.inLine.node, s.requestID, false)
	if err != nil {
		return nil, err
	}
	if i.turn = turn; !turn.Slot {
		return i.waiting(s.inLine, turn), nil
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
	if !s.refuses() {
		i.inLine = s.view
	}
	return i.waiting(s.view, s.turn), nil
}

func (i *Installer) waiting(v *view, turn cluster.Turn) *rollout.Report {
	report := i.reportOn(v)
	report.Phase, report.Message = rollout.Waiting, turn.WaitReason
	return &report
}
