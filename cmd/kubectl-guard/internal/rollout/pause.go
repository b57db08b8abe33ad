package rollout

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

type pauseOptions struct {
	*factory.Factory
	pools []string
}

func newPauseCommand(s *factory.Factory) *cobra.Command {
	o := &pauseOptions{Factory: s}
	command := &cobra.Command{
		Use:   "pause --pool NAME",
		Short: "Start no further node of a pool",
		Long: `Start no further node of a pool.

A node that is being changed is finished, one way or the other. New nodes of
the pool are not changed either until the roll-out is resumed.

It is one request, a patch of the pool's DaemonSet, which works whatever else the cluster
is busy with and whatever release the pool is from.`,
		Example: `  kubectl guard rollout pause --pool blue`,
		RunE:    verb.RunE(o),
	}
	addPoolFlag(s, command, &o.pools)
	return command
}

// pausing is what makes a DaemonSet a paused pool.
const pausing = `{"metadata":{"annotations":{"` + rollout.PausedAnnotation + `":"true"}},"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}`

func (o *pauseOptions) Validate() error {
	if len(o.pools) == 0 {
		return errWhichPool
	}
	return nil
}

// Run pauses all pools that it can: it is the brake.
func (o *pauseOptions) Run(ctx context.Context) error {
	c, err := o.Connect()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range o.pools {
		_, err := c.Kube.AppsV1().DaemonSets(rollout.Namespace).Patch(ctx, rollout.DaemonSetName(name), types.MergePatchType, []byte(pausing), metav1.PatchOptions{FieldManager: factory.FieldManager})
		switch {
		case apierrors.IsNotFound(err):
			errs = append(errs, pool.NotFound(name))
		case err != nil:
			errs = append(errs, fmt.Errorf("pool %s: patch DaemonSet %s: %w", name, rollout.DaemonSetName(name), err))
		default:
			fmt.Fprintf(o.Out, "%s: paused\n", name)
		}
	}
	return errors.Join(errs...)
}
