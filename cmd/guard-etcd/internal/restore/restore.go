// Package restore is the verb restore: it plans, and with --apply writes, objects that were
// deleted.
package restore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/restore"
)

type options struct {
	*Writer
	arguments []string
	keys      []string
	namespace string
	from      string
	plan      restore.Options
	acting    string
}

// NewCommand returns the verb restore.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Writer: &Writer{Factory: f}}
	command := &cobra.Command{
		Use:   "restore (KIND/NAME... | --key=KEY)",
		Short: "Restore deleted objects with their UIDs",
		Long: `Restore deleted objects with their UIDs, from etcd's own history or from a
snapshot. Without --apply it shows the plan and writes nothing.

  crd/NAME         the definition and its custom resources
  namespace/NAME   the Namespace and what is in it
  KIND/NAME        an object of --namespace, or of no namespace

and what these own, as far as it was deleted with them. Pods, Endpoints,
EndpointSlices, Events and Leases are left out.

An object is written only if its key is absent. What cannot be restored safely
is refused by name, and then nothing is written. A second run does nothing.`,
		Example: `  guard-etcd restore crd/machines.example.com
  guard-etcd restore crd/machines.example.com --apply --expect=1001
  guard-etcd restore namespace/shop --acting=leave-out
  guard-etcd restore deployment/web -n shop --from /var/backups/etcd/snapshot.db`,
		ValidArgsFunction: cobra.FixedCompletions([]string{"crd/", "namespace/", "deployment/", "statefulset/", "configmap/", "secret/", "service/"}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp),
		RunE:              verb.RunE(o),
	}
	o.Writer.AddFlags(command)
	flags := command.Flags()
	flags.StringSliceVar(&o.keys, "key", nil, "A key of etcd")
	flags.StringVarP(&o.namespace, "namespace", "n", "default", "The namespace of KIND/NAME")
	flags.StringVar(&o.from, "from", "", "A snapshot to restore from")
	flags.Int64Var(&o.plan.Revision, "revision", 0, "Restore the state of this revision; 0: what was deleted, or the newest state of --from")
	flags.StringSliceVar(&o.plan.Include, "include", nil, "Kinds to restore that are left out otherwise, as pods")
	flags.StringVar(&o.acting, "acting", "", "What to do with objects that act as soon as they are back, as CronJobs: restore or leave-out")
	flags.BoolVar(&o.plan.Replace, "replace", false, "Write over objects that were created again, or are terminating")
	_ = command.RegisterFlagCompletionFunc("acting", cobra.FixedCompletions([]string{string(restore.ActingRestore), string(restore.ActingLeaveOut)}, cobra.ShellCompDirectiveNoFileComp))
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(_ *cobra.Command, arguments []string) error {
	o.arguments = arguments
	for _, argument := range arguments {
		selector, err := restore.ParseSelector(argument, o.namespace)
		if err != nil {
			return err
		}
		o.plan.Selectors = append(o.plan.Selectors, selector)
	}
	for _, key := range o.keys {
		o.plan.Selectors = append(o.plan.Selectors, restore.Selector{Key: key})
	}
	o.plan.Acting, o.plan.Source = restore.Acting(o.acting), o.from
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error {
	switch {
	case len(o.plan.Selectors) == 0:
		return errors.New("what is to be restored? Give KIND/NAME, as crd/machines.example.com, or --key=KEY; guard-etcd log shows what was deleted")
	case o.acting != "" && o.plan.Acting != restore.ActingRestore && o.plan.Acting != restore.ActingLeaveOut:
		return fmt.Errorf("--acting: %q is neither %s nor %s", o.acting, restore.ActingRestore, restore.ActingLeaveOut)
	case o.plan.Revision < 0:
		return errors.New("--revision must not be negative")
	}
	for _, key := range o.keys {
		if !strings.HasPrefix(key, o.Connection.Prefix()) {
			return fmt.Errorf("--key: %s is not below %s (--etcd-prefix)", key, o.Connection.Prefix())
		}
	}
	return o.Writer.Validate()
}

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	api, err := o.API()
	if err != nil {
		if o.Apply {
			return fmt.Errorf("nothing is written without an API server that checks it: %w", err)
		}
		o.Warn("%v", err)
	}
	o.FindUnfinished()
	plan, err := o.makePlan(ctx, decoder, live, api)
	if err != nil {
		return err
	}
	if owned := plan.Owned(); owned > 0 {
		o.Warn("objects with owners: %d. A garbage collector that is still at work after the accident deletes them again: stop kube-controller-manager until they are restored", owned)
	}
	if !o.Apply {
		return o.show(plan)
	}
	if err := o.Confirm(plan); err != nil {
		return errors.Join(o.show(plan), err)
	}
	return o.Write(ctx, plan, client, api)
}

func (o *options) makePlan(ctx context.Context, decoder *objects.Decoder, live *history.Live, api *restore.API) (*restore.Plan, error) {
	progress := factory.StartProgress(o.ErrOut, "Reading the history")
	defer progress.Stop()
	if o.from == "" {
		plan, err := restore.NewPlan(ctx, o.plan, decoder, o.Connection.Prefix(), live, live, api)
		if err == nil && live.Gap.Newest != 0 {
			gap := fmt.Errorf("etcd compacted the revisions %d to %d while they were read: objects deleted in them may be missing", live.Gap.Oldest, live.Gap.Newest)
			if o.Apply {
				// A part without notice would be taken for the whole.
				return nil, fmt.Errorf("%w; nothing is written. The same command restores what is still there, --from=SNAPSHOT also what was compacted", gap)
			}
			o.Warn("%v", gap)
		}
		return plan, err
	}
	file, err := o.Connection.OpenFile(o.from)
	if err != nil {
		return nil, fmt.Errorf("--from: %w", err)
	}
	defer file.Close()
	if err := restore.CheckCluster(ctx, decoder, o.Connection.Prefix(), file, live); err != nil {
		return nil, fmt.Errorf("--from: %s: %w", o.from, err)
	}
	return restore.NewPlan(ctx, o.plan, decoder, o.Connection.Prefix(), file, live, api)
}
