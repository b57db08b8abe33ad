package node

import (
	"context"
	"time"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// queryMode queries the guard for its mode: the file that the kubelet has read may have been
// another one. Nothing follows when a node that was done does not respond.
func (i *Installer) queryMode(ctx context.Context, s State) (*rollout.Report, error) {
	i.modeQueried = time.Now()
	mode := i.inMode(ctx, s)
	switch {
	case mode.Err() == nil:
		i.mode, i.modeOf = mode, s.process.PID
	case s.finished == nil:
		return nil, mode.Err()
	}
	return nil, nil
}

func (i *Installer) inMode(ctx context.Context, s State) answer.Answer {
	entry := s.entry
	if s.journalErr != nil || entry == nil || entry.State != journal.Confirmed {
		entry = &journal.Entry{Kubelet: rollout.Kubelet{Mode: s.target.Mode()}}
	}
	address := entry.Address
	if boot, err := i.Root.Boot(); err != nil || boot != entry.Boot {
		node, err := i.Cluster.Node(ctx)
		if err != nil {
			return answer.Unknown(err)
		}
		address = kubeletAddress(node)
	}
	kubelet, _, err := i.queryNow(ctx, address, entry, s.process)
	return answer.Check(kubelet.Guarded && kubelet.Mode == entry.Kubelet.Mode, err)
}
