package rollout

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

func newResumeCommand(s *factory.Factory) *cobra.Command {
	o := &changeOptions{waiter: waiter{Factory: s}}
	o.change = o.resume
	return o.command(&cobra.Command{
		Use:   "resume --pool NAME",
		Short: "Continue with a pool that is paused, or stopped at a node",
		Long: `Continue with a pool that is paused, or stopped at a node.

A node that failed is retried: fix it first. The command writes the failed
attempt into the annotation ` + rollout.ResumeAnnotation + ` of the node, takes
the label ` + rollout.StateLabel + `=` + rollout.StateFailed + ` off it and waits as start does.`,
		Example: `  kubectl guard rollout resume --pool blue`,
	}, false)
}

func (o *changeOptions) resume(ctx context.Context, c *factory.Clients, _ *pool.Fleet, pools []*pool.Pool) error {
	for _, p := range pools {
		request, err := rollout.RequestOf(p.Set)
		if err != nil {
			return err
		}
		if request.Target == rollout.Observe {
			return fmt.Errorf("pool %s is only inspected; to change it, run kubectl guard rollout start --pool %s", p.Name, p.Name)
		}
		if request.ReleaseHeld {
			return fmt.Errorf("pool %s: its request is of an earlier release and lets every held pod stop, which is no longer accepted: run the kubectl guard rollout start, undo or uninstall again that it is from", p.Name)
		}
		progress := p.Progress(request)
		failed := progress.Named(pool.StepFailed)
		if len(failed) > 0 && !o.yes {
			if err := o.Confirm(ctx, fmt.Sprintf("Retry nodes of pool %s: %s?", p.Name, printer.Listed(failed))); err != nil {
				return err
			}
		}
		p.Stale = progress.Reported(pool.StepFailed)
		err = p.Update(ctx, c.Kube, func(set *appsv1.DaemonSet) {
			delete(set.Annotations, rollout.PausedAnnotation)
			set.Spec.UpdateStrategy = rollout.RollingUpdate(p.Pool)
		})
		if err != nil {
			return err
		}
		if err := pool.UnmarkNodes(ctx, c.Kube, p.Nodes, false); err != nil {
			return err
		}
		if err := p.ReleaseStrandedSlots(ctx, c.Kube); err != nil {
			return err
		}
		if err := o.finish(ctx, c, p, request); err != nil {
			return err
		}
	}
	return nil
}
