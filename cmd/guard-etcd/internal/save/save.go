// Package save is the verb save: a snapshot of etcd that is known to be readable.
package save

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/scan"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

type options struct {
	*factory.Factory
	output      factory.Output
	dir         string
	keep        int
	metricsFile string
}

// NewCommand returns the verb save.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Factory: f}
	command := &cobra.Command{
		Use:   "save [DIR]",
		Short: "Save a snapshot of etcd and what a restore needs besides it",
		Long: `Save a snapshot of etcd into a folder below DIR (default ` + factory.DefaultSnapshotDir + `),
named by its time, with a manifest: revision, hashes of the snapshot and of the
API server's encryption configuration, versions, members, and what there is of
each resource. The folder appears when it is complete.

Every object is decoded. The exit code is 1 if one does not decode; the snapshot
is kept all the same.

--keep removes all but the newest snapshots. The last snapshot before a resource
shrank by more than 20 % is kept as long as it is that much smaller.

--metrics-file writes the state of DIR for the textfile collector of Prometheus'
node exporter, also after a save that failed.`,
		Example: `  guard-etcd save
  guard-etcd save /var/backups/etcd --keep=48 \
    --metrics-file=/var/lib/node_exporter/textfile_collector/guard-etcd.prom`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs),
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	command.Flags().IntVar(&o.keep, "keep", 0, "How many snapshots to keep; 0: all")
	command.Flags().StringVar(&o.metricsFile, "metrics-file", "", "File for metrics of DIR, *"+snapshots.MetricsSuffix+" in the folder of the node exporter's textfile collector")
	_ = command.MarkFlagFilename("metrics-file", strings.TrimPrefix(snapshots.MetricsSuffix, "."))
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(_ *cobra.Command, arguments []string) error {
	o.dir = factory.DefaultSnapshotDir
	if len(arguments) == 1 {
		o.dir = arguments[0]
	}
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error {
	if o.keep < 0 {
		return errors.New("--keep must not be negative")
	}
	if o.metricsFile != "" && !strings.HasSuffix(o.metricsFile, snapshots.MetricsSuffix) {
		return fmt.Errorf("--metrics-file: %s does not end in %s, and the node exporter reads no other files", o.metricsFile, snapshots.MetricsSuffix)
	}
	return o.output.Validate()
}

// result is what -o json and yaml print.
type result struct {
	Path string `json:"path"`
	*snapshots.Manifest
	Removed []string           `json:"removed,omitempty"`
	Kept    []snapshots.Kept   `json:"kept,omitempty"`
	Shrunk  []snapshots.Shrink `json:"shrunk,omitempty"`
}

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	err := o.save(ctx)
	if o.metricsFile == "" {
		return err
	}
	if metricsErr := snapshots.WriteMetrics(o.metricsFile, o.dir); metricsErr != nil {
		err = errors.Join(err, fmt.Errorf("--metrics-file: %w", metricsErr))
	}
	return err
}

func (o *options) save(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	client, err := o.Connection.ClientConfig()
	if err != nil {
		return err
	}
	progress := factory.StartProgress(o.ErrOut, "Saving")
	saved, err := snapshots.Save(ctx, snapshots.SaveOptions{
		Dir: o.dir, Client: client, Decoder: decoder, Prefix: o.Connection.Prefix(), EncryptionConfig: o.Connection.EncryptionConfig(),
		Now: o.Now, Progress: progress.Set,
	})
	progress.Stop()
	if saved == nil {
		return err
	}
	r := result{Path: saved.Path, Manifest: saved.Manifest}
	// Nothing is removed in favour of a snapshot that cannot be read.
	if o.keep > 0 && err == nil {
		var rotateErr error
		if r.Removed, r.Kept, rotateErr = snapshots.Rotate(o.dir, o.keep); rotateErr != nil {
			o.Warn("%v", rotateErr)
		}
	}
	list, listErr := snapshots.List(o.dir)
	if listErr != nil && o.keep == 0 { // else rotation warned
		o.Warn("%v", listErr)
	}
	r.Shrunk = snapshots.Shrunk(list)
	return errors.Join(o.show(&r), describe(saved, err))
}

// describe returns what is wrong with a snapshot that is saved.
func describe(saved *snapshots.Saved, err error) error {
	switch {
	case errors.Is(err, scan.ErrWrongKey):
		return fmt.Errorf("the snapshot is saved, but not verified: %w", err)
	case len(saved.Problems) > 0:
		return fmt.Errorf("the snapshot is saved, with damaged keys: %d; guard-etcd scan --revert restores their last readable versions", len(saved.Problems))
	}
	return err
}

func (o *options) show(r *result) error {
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, "SavedSnapshot", r)
	}
	fmt.Fprintf(o.Out, "Saved %s: revisions %d to %d, %d keys, %d bytes.\n", r.Path, r.Oldest, r.Newest, r.Keys, r.Size)
	if r.Encryption != nil {
		fmt.Fprintf(o.Out, "Encrypted objects need %s as it is now: save it elsewhere.\n", r.Encryption.Path)
	}
	for _, problem := range r.Problems {
		fmt.Fprintf(o.Out, "Damaged: %s: %s\n", problem.Key, problem.Problem)
	}
	for _, s := range r.Shrunk {
		fmt.Fprintf(o.Out, "Fewer %s: %d, and %d in %s.\n", s.Resource, s.Now, s.Before, s.Path)
	}
	for _, path := range r.Removed {
		fmt.Fprintf(o.Out, "Removed %s.\n", path)
	}
	for _, kept := range r.Kept {
		fmt.Fprintf(o.Out, "Kept %s: %s.\n", kept.Path, kept.Reason)
	}
	return nil
}
