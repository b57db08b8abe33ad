// Package scan is the verb scan: it finds damaged keys, and replaces them with their last readable
// versions.
package scan

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	writer "kubelet-guard.io/cmd/guard-etcd/internal/restore"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/restore"
	"kubelet-guard.io/pkg/dataprotection/scan"
)

type options struct {
	*writer.Writer
	file   string
	revert bool
	from   string
}

// NewCommand returns the verb scan.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Writer: &writer.Writer{Factory: f}}
	command := &cobra.Command{
		Use:   "scan [FILE]",
		Short: "Find keys that the API server cannot read",
		Long: `Decode every key of the API server in etcd, or in a snapshot, FILE, and name
those that do not decode, or that hold another object than they name.

One such key makes consistent lists of its whole kind fail. --revert --apply
writes its last readable version, from etcd's history or from a snapshot, unless
the key changed meanwhile, with a journal. The API server need not restart.

The exit code is 1 if a key is damaged.`,
		Example: `  guard-etcd scan
  guard-etcd scan --revert
  guard-etcd scan --revert --apply
  guard-etcd scan --revert --from /var/backups/etcd/snapshot.db`,
		Args: cobra.MaximumNArgs(1),
		RunE: verb.RunE(o),
	}
	o.Writer.AddFlags(command)
	flags := command.Flags()
	flags.BoolVar(&o.revert, "revert", false, "Plan to write the last readable version of each damaged key")
	flags.StringVar(&o.from, "from", "", "A snapshot for what the history does not have")
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(_ *cobra.Command, arguments []string) error {
	if len(arguments) == 1 {
		o.file = arguments[0]
	}
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error {
	switch {
	case o.file != "" && (o.revert || o.from != ""):
		return errors.New("a snapshot is never written: --revert and --from are for a running etcd")
	case o.Apply && !o.revert:
		return errors.New("--apply goes with --revert")
	case o.from != "" && !o.revert:
		return errors.New("--from goes with --revert")
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
	if o.file != "" {
		file, err := o.Connection.OpenFile(o.file)
		if err != nil {
			return err
		}
		defer file.Close()
		return o.scan(ctx, file, nil, decoder, nil)
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if o.from == "" {
		return o.scan(ctx, live, nil, decoder, client)
	}
	file, err := o.Connection.OpenFile(o.from)
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	defer file.Close()
	if err := restore.CheckCluster(ctx, decoder, o.Connection.Prefix(), file, live); err != nil {
		return fmt.Errorf("--from: %s: %w", o.from, err)
	}
	return o.scan(ctx, live, file, decoder, client)
}

// scan reads and shows; with a client and --apply it writes.
func (o *options) scan(ctx context.Context, reader, fallback history.Reader, decoder *objects.Decoder, client *clientv3.Client) error {
	progress := factory.StartProgress(o.ErrOut, "Decoding")
	report, err := scan.Run(ctx, reader, fallback, decoder, o.Connection.Prefix(), progress.Set)
	progress.Stop()
	if err != nil {
		return err
	}
	if report.Keys == 0 {
		return fmt.Errorf("no keys under %s: is the prefix another (--etcd-prefix)?", o.Connection.Prefix())
	}
	if err := o.show(report); err != nil {
		return err
	}
	if !o.Apply {
		if len(report.Findings) > 0 {
			return fmt.Errorf("damaged keys: %d", len(report.Findings))
		}
		return nil
	}
	return o.write(ctx, report, client)
}

// write writes the readable versions. The API need not read them: it may not respond as long as
// keys are damaged.
func (o *options) write(ctx context.Context, report *scan.Report, client *clientv3.Client) error {
	o.FindUnfinished()
	plan := report.Plan(o.from)
	if err := o.Confirm(plan); err != nil {
		return err
	}
	for _, item := range plan.Items {
		fmt.Fprintf(o.ErrOut, "Writing %s: its version of revision %d\n", item.Key, item.Revision)
	}
	// Repairs do not need each other.
	none := func(context.Context, []*restore.Item) error { return nil }
	if _, err := o.WriteUnread(ctx, plan, client, none); err != nil {
		return err
	}
	fmt.Fprintf(o.ErrOut, "Written: %d of %d damaged keys.\n", plan.Writes(), len(report.Findings))
	if left := len(report.Findings) - plan.Writes(); left > 0 {
		return fmt.Errorf("damaged keys without a readable version: %d; --from=SNAPSHOT adds those of a snapshot", left)
	}
	return nil
}

func (o *options) show(report *scan.Report) error {
	if !o.Output.HumanReadable() {
		return o.Output.PrintObject(o.Out, "ScanReport", report)
	}
	if len(report.Findings) > 0 {
		columns := []factory.Column{{Name: "Key"}, {Name: "Revision"}, {Name: "Problem"}, {Name: "Readable"}, {Name: "Object", Wide: true}}
		var rows [][]any
		for _, f := range report.Findings {
			readable := f.NoGood
			if f.GoodRevision != 0 {
				readable = fmt.Sprintf("revision %d", f.GoodRevision)
			}
			rows = append(rows, []any{f.Key, f.Revision, f.Problem, readable, f.Object})
		}
		if err := o.Output.PrintTable(o.Out, columns, rows); err != nil {
			return err
		}
		fmt.Fprintln(o.Out)
	}
	fmt.Fprintf(o.Out, "Decoded %d keys, %d of them encrypted. Damaged: %d.\n", report.Keys, report.Encrypted, len(report.Findings))
	if o.revert && !o.Apply && report.Plan(o.from).Writes() > 0 {
		fmt.Fprintln(o.Out, "Nothing is written. Add --apply to write the readable versions.")
	}
	return nil
}
