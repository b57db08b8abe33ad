// Package log is the verb log: what was deleted from etcd lately.
package log

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/deletions"
	"kubelet-guard.io/pkg/dataprotection/history"
)

type options struct {
	*factory.Factory
	output    factory.Output
	file      string
	namespace string
	objects   bool
	all       bool
	auditLog  string
}

// NewCommand returns the verb log.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Factory: f}
	command := &cobra.Command{
		Use:   "log [FILE]",
		Short: "Show what was deleted since etcd's last compaction",
		Long: `Show what was deleted since etcd's last compaction, by kind and namespace, the
latest first; or what the history in a snapshot has, FILE.

UNREADABLE objects cannot be restored. Times are those of the control plane's
leases, and right to about ten seconds.`,
		Example: `  guard-etcd log
  guard-etcd log --objects -n shop
  guard-etcd log /var/backups/etcd/snapshot.db
  guard-etcd log --audit-log /var/log/kubernetes/audit.log`,
		Args: cobra.MaximumNArgs(1),
		RunE: verb.RunE(o),
	}
	o.output.AddFlags(command)
	flags := command.Flags()
	flags.StringVarP(&o.namespace, "namespace", "n", "", "Only this namespace, and the Namespace itself")
	flags.BoolVar(&o.objects, "objects", false, "Show each object")
	flags.BoolVar(&o.all, "all", false, "Show also what is deleted all the time: Events, Leases, EndpointSlices")
	flags.StringVar(&o.auditLog, "audit-log", "", "The API server's audit log (JSON), which has who requested deletions")
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
func (o *options) Validate() error { return o.output.Validate() }

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	// The connections of the decoder to key management end with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	settings := deletions.Options{All: o.all, Namespace: o.namespace}
	var err error
	if o.auditLog != "" {
		if settings.Audit, err = deletions.ReadAudit(o.auditLog); err != nil {
			return err
		}
	}
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	progress := factory.StartProgress(o.ErrOut, "Reading the history")
	reader, closeReader, err := o.open(ctx)
	if err != nil {
		progress.Stop()
		return err
	}
	defer closeReader()
	if o.file == "" {
		settings.CompactionInterval = o.Connection.CompactionInterval()
	}
	result, err := deletions.Read(ctx, reader, decoder, o.Connection.Prefix(), settings)
	progress.Stop()
	if err != nil {
		return err
	}
	return o.show(result)
}

func (o *options) open(ctx context.Context) (history.Reader, func(), error) {
	if o.file != "" {
		file, err := o.Connection.OpenFile(o.file)
		if err != nil {
			return nil, nil, err
		}
		return file, func() { _ = file.Close() }, nil
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		return nil, nil, err
	}
	return live, func() { _ = client.Close() }, nil
}

func (o *options) show(l *deletions.Log) error {
	if l.Gap != nil {
		o.Warn("etcd compacted the revisions %d to %d while they were read: deletions in them may be missing", l.Gap.Oldest, l.Gap.Newest)
	}
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, "DeletionLog", l)
	}
	var err error
	switch {
	case len(l.Items) == 0:
		fmt.Fprintln(o.Out, "No deletions.")
	case o.objects:
		err = o.showObjects(l)
	default:
		err = o.showGroups(l)
	}
	if err != nil {
		return err
	}
	o.showBounds(l)
	return nil
}

func (o *options) showGroups(l *deletions.Log) error {
	columns := []factory.Column{{Name: "Kind"}, {Name: "Namespace"}, {Name: "Objects"}, {Name: "Unreadable"}, {Name: "Deleted"}, {Name: "Revisions"}, {Name: "Example"}, {Name: "By"}}
	if o.auditLog == "" {
		columns[len(columns)-1].Wide = true
	}
	var rows [][]any
	for _, g := range l.Groups {
		revisions := fmt.Sprint(g.FirstRevision)
		if g.LastRevision != g.FirstRevision {
			revisions += fmt.Sprintf("-%d", g.LastRevision)
		}
		rows = append(rows, []any{g.Kind, orNone(g.Namespace), g.Objects, g.Unreadable, clockTime(g.Last), revisions, g.Example, orNone(strings.Join(g.By, ","))})
	}
	return o.output.PrintTable(o.Out, columns, rows)
}

func (o *options) showObjects(l *deletions.Log) error {
	columns := []factory.Column{{Name: "Revision"}, {Name: "Kind"}, {Name: "Namespace"}, {Name: "Name"}, {Name: "Readable"}, {Name: "By"}, {Name: "UID", Wide: true}, {Name: "Key", Wide: true}}
	if o.auditLog == "" {
		columns[5].Wide = true
	}
	var rows [][]any
	for _, item := range l.Items {
		readable := "yes"
		if item.Unreadable != "" {
			readable = "no: " + item.Unreadable
		}
		rows = append(rows, []any{item.Revision, item.Kind, orNone(item.Namespace), orNone(item.Name), readable, orNone(item.By), orNone(item.UID), item.Key})
	}
	return o.output.PrintTable(o.Out, columns, rows)
}

// showBounds says how far the history reaches back, and what becomes of it.
func (o *options) showBounds(l *deletions.Log) {
	fmt.Fprintln(o.Out)
	since := ""
	if l.Since != nil {
		since = " (since " + clockTime(l.Since)
		if o.file == "" {
			since += ", " + o.Now().Sub(*l.Since).Round(time.Second).String()
		}
		since += ")"
	}
	fmt.Fprintf(o.Out, "History: revisions %d to %d%s.\n", l.Oldest, l.Newest, since)
	if l.Routine > 0 {
		fmt.Fprintf(o.Out, "Not shown: %d Events, Leases and the like; --all shows them.\n", l.Routine)
	}
	if o.file != "" {
		return
	}
	if l.NextCompaction == nil {
		fmt.Fprintln(o.Out, "A compaction removes it: guard-etcd save keeps it.")
		return
	}
	left := max(0, l.NextCompaction.Sub(o.Now()).Round(time.Second))
	fmt.Fprintf(o.Out, "In about %s the API server compacts it up to revision %d, and the rest %s later.\nguard-etcd save keeps it: guard-etcd log FILE and guard-etcd restore --from=FILE read its snapshot.db.\n",
		left, l.NextCompactionRevision, o.Connection.CompactionInterval())
}

func clockTime(t *time.Time) string {
	if t == nil {
		return "<unknown>"
	}
	return t.Local().Format("15:04:05")
}

func orNone(text string) string {
	if text == "" {
		return "<none>"
	}
	return text
}
