// Package protect has the verbs protect and unprotect: the label of running pods.
package protect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
)

type options struct {
	*factory.Factory
	output   *printer.Output
	dryRun   dryrun.Strategy
	selector string
	yes      bool
	// override is why the label may go although a policy of the cluster keeps it on
	// running pods; overrideFor is how long that counts.
	override    string
	overrideFor time.Duration
	// arguments are KIND/NAME and the like, flags those of the command.
	arguments []string
	flags     *pflag.FlagSet
	// protect: put the label on; otherwise take it off.
	protect bool
}

// NewProtectCommand returns the verb protect.
func NewProtectCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New(), protect: true}
	return o.command(&cobra.Command{
		Use:   "protect (KIND/NAME... | KIND -l SELECTOR)",
		Short: "Label running pods for protection, in place",
		Long: `Label running pods for protection, in place.

Of a workload, its running pods are labelled, and never its pod template: nothing is
restarted. Pods that replace them later come without the label, unless the template
has it, too; the command prints how to add it there.`,
		Example: `  kubectl guard protect deploy/web
  kubectl guard protect pod/web-0 statefulset/db --dry-run=server
  kubectl guard protect pods -l app=db`,
	})
}

func (o *options) command(command *cobra.Command) *cobra.Command {
	command.ValidArgsFunction = completion.Workloads(o.Factory)
	command.RunE = verb.RunE(o)
	o.output.AddFlags(command)
	o.dryRun.AddFlag(command, true)
	command.Flags().StringVarP(&o.selector, "selector", "l", "", "Label selector, for a KIND without names")
	_ = command.RegisterFlagCompletionFunc("selector", cobra.NoFileCompletions)
	if !o.protect {
		command.Flags().BoolVarP(&o.yes, "yes", "y", false, "Do not ask about held pods")
		command.Flags().StringVar(&o.override, "override", "", "Reason to take the label off although a policy keeps it; written to the pod and to the audit log")
		command.Flags().DurationVar(&o.overrideFor, "override-for", defaultOverrideFor, "How long the override counts, for anything that is done to the pod")
	}
	return command
}

func (o *options) Complete(command *cobra.Command, arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("which pods? give KIND/NAME, such as deploy/web or pod/web-0, or KIND with -l")
	}
	o.arguments, o.flags = arguments, command.Flags()
	return nil
}

func (o *options) Validate() error {
	if err := o.output.Validate(); err != nil {
		return err
	}
	return o.validateOverride()
}

func (o *options) Run(ctx context.Context) error {
	c, err := o.Connect()
	if err != nil {
		return err
	}
	objects, err := o.read(c)
	if err != nil {
		return err
	}
	pods, workloads, err := o.pods(ctx, c, objects)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		return fmt.Errorf("%s has no pods", strings.Join(o.arguments, " "))
	}
	if !o.protect && !o.yes && o.dryRun == dryrun.None {
		if err := o.confirmHeld(ctx, pods); err != nil {
			return err
		}
	}
	if o.protect {
		o.warnUnguarded(ctx, c, pods)
	}
	list := printer.NewList[protectionChange]("ProtectionChangeList")
	var errs []error
	for i := range pods {
		change, err := o.apply(ctx, c, &pods[i])
		list.Items = append(list.Items, change)
		if err != nil {
			errs = append(errs, err)
		}
		if o.output.HumanReadable() {
			o.report(change)
		}
	}
	if !o.output.HumanReadable() {
		return errors.Join(append(errs, o.output.PrintObject(o.Out, &list))...)
	}
	if len(errs) < len(pods) {
		o.adviseTemplates(workloads)
		o.adviseOwners(list.Items, pods, objects)
	}
	return errors.Join(errs...)
}
