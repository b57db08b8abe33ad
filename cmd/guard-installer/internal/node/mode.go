package node

import (
	"context"
	"time"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/pkg/rollout"
)

// queryMode queries the guard for its mode: the file that the kubelet has read may have been
// another one. Nothing follows when a node that was done does not respond.
func (i *Installer) queryMode(ctx context.Context, s State) (*rollout.Report, error) {
	i.modeQueried = time.Now()
	response, err := i.queryGuard(ctx, s)
	if err == nil {
		i.mode, i.modeOf = answer.Of(response.Guarded && response.Mode == s.target.Mode()), s.process.PID
	} else if s.finished == nil {
		return nil, err
	}
	return nil, nil
}

func (i *Installer) queryGuard(ctx context.Context, s State) (response kubelet.Answer, err error) {
	address := ""
	if boot, err := i.Root.Boot(); err == nil && s.entry != nil && boot == s.entry.Boot {
		address = s.entry.Address
	} else if node, err := i.Cluster.Node(ctx); err == nil {
		address = kubeletAddress(node)
	} else {
		return response, err
	}
	response, _, err = i.Ask(ctx, address, "") // its certificate may have been rotated
	return response, err
}
