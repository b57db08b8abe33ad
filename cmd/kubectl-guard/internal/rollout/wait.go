package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

// defaultTimeout is for a node without progress: the image is pulled, the
// kubelet exchanged, verified and, if need be, rolled back in a few minutes.
const defaultTimeout = 10 * time.Minute

// waiter awaits installers, and prints their progress.
type waiter struct {
	*factory.Factory
	timeout time.Duration
}

func (o *waiter) addFlags(command *cobra.Command) {
	command.Flags().DurationVar(&o.timeout, "timeout", defaultTimeout, "How long a pool may be without progress on any node before the command gives up; the roll-out continues without it")
	_ = command.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
}

// Validate refuses a time that is no time.
func (o *waiter) Validate() error {
	if o.timeout <= 0 {
		return errors.New("--timeout must be positive")
	}
	return nil
}

// refusalRetry is the time in which an installer that has refused retries, which it does every
// 15 seconds.
const refusalRetry = 45 * time.Second

// sleep waits for the time between two queries.
func (o *waiter) sleep(ctx context.Context) error {
	select {
	case <-time.After(2 * o.Poll):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await prints what happens on the nodes of a pool until all that are ready are done, or
// until one has failed.
func (o *waiter) await(ctx context.Context, c *factory.Clients, p *pool.Pool, request rollout.Request) (pool.Progress, error) {
	printed := map[string]string{}
	these := namesOf(p.Nodes)
	started := o.Now()
	progressed := started
	paused := false
	var problem error
	for {
		before := problem
		if problem = p.Refresh(ctx, c.Kube); problem == nil {
			p.Nodes = onlyThese(p.Nodes, these)
			if o.Now().Sub(started) > refusalRetry {
				p.ForgetStale(rollout.Refused)
			}
			is, err := rollout.RequestOf(p.Set)
			if err != nil {
				return pool.Progress{}, fmt.Errorf("pool %s: %w", p.Name, err)
			}
			if is.ID() != request.ID() {
				return pool.Progress{}, p.ChangedByOthers(is)
			}
			if now := rollout.Paused(p.Set); now != paused {
				if paused = now; paused {
					fmt.Fprintf(o.Out, "%s: paused; kubectl guard rollout resume --pool %s continues\n", p.Name, p.Name)
				} else {
					fmt.Fprintf(o.Out, "%s: resumed\n", p.Name)
				}
			}
			progress := p.Progress(request)
			for _, node := range progress.Nodes {
				if text := node.Text(); printed[node.Node] != text {
					// What all nodes start with, and what a table shows later, is left out.
					initial := printed[node.Node] == "" && node.Step == pool.StepPending && node.Ready
					if !initial {
						fmt.Fprintf(o.Out, "%s/%s: %s\n", p.Name, node.Node, text)
					}
					printed[node.Node] = text
					progressed = o.Now()
				}
			}
			switch {
			case progress.Count(pool.StepFailed) > 0:
				return progress, o.stopped(ctx, c, p, progress)
			case progress.Finished():
				return progress, nil
			}
			if o.Now().Sub(progressed) > o.timeout {
				return progress, o.stalled(ctx, c, p, progress, request)
			}
		} else if before == nil && ctx.Err() == nil {
			// Not the end: API servers are restarted, too.
			o.Warn("%v; retrying", problem)
		} else if o.Now().Sub(progressed) > o.timeout {
			return pool.Progress{}, exitcode.With(fmt.Errorf("no progress for %s: %w", o.timeout, problem), exitcode.Timeout)
		}
		if err := o.sleep(ctx); err != nil {
			return pool.Progress{}, fmt.Errorf("interrupted; the roll-out of pool %s continues in the cluster. kubectl guard rollout status shows it, kubectl guard rollout pause --pool %s starts no further node", p.Name, p.Name)
		}
	}
}

// onlyThese leaves out the nodes that have joined the pool since its nodes were counted:
// what the command waits for must not grow while it waits.
func onlyThese(nodes []corev1.Node, names map[string]bool) []corev1.Node {
	return slices.DeleteFunc(nodes, func(node corev1.Node) bool { return !names[node.Name] })
}

func namesOf(nodes []corev1.Node) map[string]bool {
	names := map[string]bool{}
	for i := range nodes {
		names[nodes[i].Name] = true
	}
	return names
}
