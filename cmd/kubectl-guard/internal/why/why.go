// Package why is the verb why: all that is known about one pod, and what to do.
package why

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
)

type options struct {
	*factory.Factory
	output *printer.Output
	node   string
	pod    string
}

// NewCommand returns the verb why.
func NewCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New()}
	command := &cobra.Command{
		Use:   "why POD",
		Short: "Explain one pod: protection, holds, refusals, evidence",
		Long: `Explain one pod: whether it is protected and why, what its kubelet refused to do,
whether there is evidence that its deletion was requested, and what to do.

The pod is looked for in the API, on the nodes, and in events, so it may be gone.`,
		Example: `  kubectl guard why web-0
  kubectl guard why web-0 --node worker-3 -o yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completion.ProtectedPods(s),
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	completion.AddNodeFlag(s, command, &o.node)
	return command
}

func (o *options) Complete(_ *cobra.Command, arguments []string) (err error) {
	o.pod, err = pods.ParseArgument(arguments[0])
	return err
}

func (o *options) Validate() error { return o.output.Validate() }

func (o *options) Run(ctx context.Context) error {
	c, responses, err := o.Query(ctx, o.node)
	if err != nil {
		return err
	}
	diagnosis, silent, err := o.diagnose(ctx, c, responses)
	if err != nil {
		return err
	}
	nodes.WarnUnreachable(o.Warn, silent, len(responses))
	if len(diagnosis.Pods) == 0 {
		return fmt.Errorf("pod %s/%s: neither the API, nor a node that responds, nor an event of the guard knows it", c.Namespace, o.pod)
	}
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, diagnosis)
	}
	for i := range diagnosis.Pods {
		if i > 0 {
			fmt.Fprintln(o.Out)
		}
		o.print(diagnosis, &diagnosis.Pods[i])
	}
	return nil
}
