// Package restore is the verb restore: it plans, and with --apply writes, objects that were
// deleted.
package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/restore"
)

const (
	// confirmAbove is how many objects need --expect.
	confirmAbove = 100
	// shownItems is how many objects of a group the plan shows; -o wide shows all.
	shownItems = 5
	// defaultJournalDir is where a restore is recorded.
	defaultJournalDir = "/var/log/guard-etcd"
)

type options struct {
	*factory.Factory
	output     factory.Output
	arguments  []string
	keys       []string
	namespace  string
	from       string
	journalDir string
	apply      bool
	expect     int
	plan       restore.Options
	acting     string
	// unfinished are earlier restores that were interrupted.
	unfinished []restore.Unfinished
}

// NewCommand returns the verb restore.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Factory: f}
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
		RunE:              factory.RunE(o),
	}
	o.output.AddFlags(command)
	flags := command.Flags()
	flags.StringSliceVar(&o.keys, "key", nil, "A key of etcd")
	flags.StringVarP(&o.namespace, "namespace", "n", "default", "The namespace of KIND/NAME")
	flags.StringVar(&o.from, "from", "", "A snapshot to restore from")
	flags.Int64Var(&o.plan.Revision, "revision", 0, "Restore the state of this revision; 0: what was deleted, or the newest state of --from")
	flags.BoolVar(&o.apply, "apply", false, "Write")
	flags.IntVar(&o.expect, "expect", 0, fmt.Sprintf("The number of objects that the plan writes; needed with --apply for more than %d", confirmAbove))
	flags.StringSliceVar(&o.plan.Include, "include", nil, "Kinds to restore that are left out otherwise, as pods")
	flags.StringVar(&o.acting, "acting", "", "What to do with objects that act as soon as they are back, as CronJobs: restore or leave-out")
	flags.BoolVar(&o.plan.Replace, "replace", false, "Write over objects that were created again, or are terminating")
	flags.StringVar(&o.journalDir, "journal-dir", defaultJournalDir, "Folder for the record of what is written")
	_ = command.RegisterFlagCompletionFunc("acting", cobra.FixedCompletions([]string{string(restore.ActingRestore), string(restore.ActingLeaveOut)}, cobra.ShellCompDirectiveNoFileComp))
	_ = command.MarkFlagDirname("journal-dir")
	return command
}

// Complete is part of factory.Verb.
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

// Validate is part of factory.Verb.
func (o *options) Validate() error {
	switch {
	case len(o.plan.Selectors) == 0:
		return errors.New("what is to be restored? Give KIND/NAME, as crd/machines.example.com, or --key=KEY; guard-etcd log shows what was deleted")
	case o.acting != "" && o.plan.Acting != restore.ActingRestore && o.plan.Acting != restore.ActingLeaveOut:
		return fmt.Errorf("--acting: %q is neither %s nor %s", o.acting, restore.ActingRestore, restore.ActingLeaveOut)
	case o.plan.Revision < 0:
		return errors.New("--revision must not be negative")
	case o.expect != 0 && !o.apply:
		return errors.New("--expect goes with --apply")
	}
	for _, key := range o.keys {
		if !strings.HasPrefix(key, o.Connection.Prefix()) {
			return fmt.Errorf("--key: %s is not below %s (--etcd-prefix)", key, o.Connection.Prefix())
		}
	}
	return o.output.Validate()
}

// Run is part of factory.Verb.
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
	api, err := o.api()
	if err != nil {
		if o.apply {
			return fmt.Errorf("nothing is written without an API server that checks it: %w", err)
		}
		o.Warn("%v", err)
	}
	o.findUnfinished()
	plan, err := o.makePlan(ctx, decoder, live, api)
	if err != nil {
		return err
	}
	if !o.apply {
		return o.show(plan)
	}
	if err := o.confirm(plan); err != nil {
		return errors.Join(o.show(plan), err)
	}
	return o.write(ctx, plan, client, api)
}

func (o *options) api() (*restore.API, error) {
	config, err := o.Connection.RESTConfig()
	if err != nil {
		return nil, err
	}
	return restore.NewAPI(config)
}

// findUnfinished warns about interrupted restores. What cannot be read stops nothing.
func (o *options) findUnfinished() {
	unfinished, err := restore.UnfinishedJournals(o.journalDir)
	if err != nil {
		o.Warn("%v", err)
	}
	for _, u := range unfinished {
		o.Warn("an earlier restore did not finish: %s", u.Path)
	}
	o.unfinished = unfinished
}

// completes reports whether a plan is that of an interrupted restore.
func (o *options) completes(plan *restore.Plan) bool {
	return slices.ContainsFunc(o.unfinished, func(u restore.Unfinished) bool { return slices.Equal(u.Selectors, plan.Selectors) })
}

func (o *options) makePlan(ctx context.Context, decoder *objects.Decoder, live *history.Live, api *restore.API) (*restore.Plan, error) {
	progress := factory.StartProgress(o.ErrOut, "Reading the history")
	defer progress.Stop()
	if o.from == "" {
		plan, err := restore.NewPlan(ctx, o.plan, decoder, o.Connection.Prefix(), live, live, api)
		if err == nil && live.Gap.Newest != 0 {
			gap := fmt.Errorf("etcd compacted the revisions %d to %d while they were read: objects deleted in them may be missing", live.Gap.Oldest, live.Gap.Newest)
			if o.apply {
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

// confirm refuses a plan with refusals, and one that is larger than expected.
func (o *options) confirm(plan *restore.Plan) error {
	writes := plan.Writes()
	switch {
	case plan.Count(restore.Refuse) > 0:
		return fmt.Errorf("objects refused: %d; nothing is written", plan.Count(restore.Refuse))
	case o.expect != 0 && o.expect != writes:
		return fmt.Errorf("--expect=%d: the plan writes %d objects; nothing is written", o.expect, writes)
	case writes > confirmAbove && o.expect == 0:
		return fmt.Errorf("the plan writes %d objects, more than %d: --expect=%d confirms it; nothing is written", writes, confirmAbove, writes)
	}
	return nil
}

// result is what -o json and yaml print after --apply.
type result struct {
	*restore.Plan
	Journal string  `json:"journal,omitempty"`
	Written int     `json:"written"`
	Seconds float64 `json:"seconds"`
	// Missing objects are written, but the API does not have them.
	Missing []*restore.Item `json:"missing,omitempty"`
}

func (o *options) write(ctx context.Context, plan *restore.Plan, client *clientv3.Client, api *restore.API) error {
	r := result{Plan: plan, Written: plan.Writes()}
	// Killed after the last transaction, a restore has nothing left to write, but its journal
	// does not say so: this one's does.
	if r.Written > 0 || o.completes(plan) {
		journal, err := restore.CreateJournal(o.journalDir, o.Now)
		if err != nil {
			return err
		}
		defer journal.Close()
		r.Journal = journal.Path()
		fmt.Fprintf(o.ErrOut, "Journal: %s\n", r.Journal)
		start := o.Now()
		progress := factory.StartProgress(o.ErrOut, "Writing")
		err = plan.Apply(ctx, client, journal, progress.Set, func(ctx context.Context, written []*restore.Item) error {
			return plan.WaitServed(ctx, api, o.Connection.Prefix(), written)
		})
		progress.Stop()
		if err != nil {
			return err
		}
		r.Seconds = o.Now().Sub(start).Seconds()
	}
	progress := factory.StartProgress(o.ErrOut, "Reading through the API")
	missing, err := plan.Verify(ctx, api, o.Connection.Prefix())
	progress.Stop()
	if err != nil {
		return fmt.Errorf("objects written: %d; they cannot be read through the API: %w", r.Written, err)
	}
	r.Missing = missing
	return o.showResult(&r)
}

func (o *options) showResult(r *result) error {
	if !o.output.HumanReadable() {
		if err := o.output.PrintObject(o.Out, "RestoreResult", r); err != nil {
			return err
		}
	} else if r.Written == 0 {
		fmt.Fprintf(o.Out, "Nothing to write. Objects that are there: %d.\n", r.Count(restore.Present))
	} else {
		expected := r.Written + r.Count(restore.Present)
		fmt.Fprintf(o.Out, "Objects written: %d, in %s. Read through the API with their UIDs: %d of %d.\n",
			r.Written, time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), expected-len(r.Missing), expected)
	}
	if len(r.Missing) == 0 {
		return nil
	}
	names := make([]string, 0, shownItems)
	for _, item := range r.Missing[:min(len(r.Missing), shownItems)] {
		names = append(names, item.String())
	}
	return fmt.Errorf("objects that the API does not have: %d, as %s: a controller deleted them again. If they have owners, restart kube-controller-manager, whose garbage collector remembers absent owners, and run the command again", len(r.Missing), strings.Join(names, ", "))
}
