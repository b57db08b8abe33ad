// Package verify is the verb verify: whether a snapshot restores, and what it has.
package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/restore"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
	"kubelet-guard.io/pkg/dataprotection/trial"
)

type options struct {
	*factory.Factory
	output  factory.Output
	path    string
	scratch string
	offline bool
	start   bool
	trial   trial.Options
	// tried is the result of --start.
	tried *trial.Report
}

// NewCommand returns the verb verify.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Factory: f}
	command := &cobra.Command{
		Use:   "verify SNAPSHOT",
		Short: "Restore a snapshot into a scratch folder and decode all that it has",
		Long: `Restore a snapshot, a file or a folder of guard-etcd save, into a scratch folder,
as etcdutl does, decode every object, and show what there is of each resource.

Refused are a file that is truncated or damaged, a snapshot of another cluster
than the one whose etcd is configured here, and an encryption configuration with
other keys. The exit code is 1 if an object does not decode, or if the snapshot
is not what its manifest says. Nothing is written outside the scratch folder.

--start also starts etcd and kube-apiserver on the restored snapshot, on the
loopback address and with certificates of their own, and lists everything
through the API. It needs both programs, of the cluster's versions, on this
host; names are found in PATH.`,
		Example: `  guard-etcd verify /var/backups/guard-etcd/20261130T230000Z
  guard-etcd verify snapshot.db --offline --encryption-provider-config=enc.yaml
  guard-etcd verify snapshot.db --start --kube-apiserver=/opt/kubernetes/v1.37.2/kube-apiserver`,
		Args: cobra.ExactArgs(1),
		RunE: verb.RunE(o),
	}
	o.output.AddFlags(command)
	flags := command.Flags()
	flags.StringVar(&o.scratch, "scratch-dir", "", "Folder for the restored snapshot, which needs its size (default: that for temporary files)")
	flags.BoolVar(&o.offline, "offline", false, "Do not compare it with the running cluster")
	flags.BoolVar(&o.start, "start", false, "Start etcd and kube-apiserver on the restored snapshot, and list everything")
	flags.StringVar(&o.trial.Etcd, "etcd", "etcd", "The program etcd, for --start")
	flags.StringVar(&o.trial.APIServer, "kube-apiserver", "kube-apiserver", "The program kube-apiserver, for --start")
	flags.StringArrayVar(&o.trial.APIServerFlags, "kube-apiserver-flag", nil, "A flag for kube-apiserver, as --kube-apiserver-flag=--runtime-config=api/all=true; may be repeated")
	_ = command.MarkFlagDirname("scratch-dir")
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(_ *cobra.Command, arguments []string) error {
	o.path = arguments[0]
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error {
	if o.start {
		var err error
		if o.trial, err = o.trial.FindPrograms(); err != nil {
			return err
		}
	}
	return o.output.Validate()
}

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	progress := factory.StartProgress(o.ErrOut, "Restoring into a scratch folder, and decoding")
	settings := snapshots.VerifyOptions{
		Decoder: decoder, Prefix: o.Connection.Prefix(), SkipHashCheck: o.Connection.SkipHashCheck(), Scratch: o.scratch, Progress: progress.Set,
		Check: func(file *history.File) error { return o.compareCluster(ctx, decoder, file) },
	}
	if o.start {
		o.trial.Prefix, o.trial.EncryptionConfig, o.trial.Progress = o.Connection.Prefix(), o.Connection.EncryptionConfig(), progress.Set
		settings.Start = func(dataDir string, content *snapshots.Content) (err error) {
			o.trial.DataDir = dataDir
			o.tried, err = trial.Run(ctx, o.trial, content)
			return err
		}
	}
	report, err := snapshots.Verify(ctx, o.path, settings)
	progress.Stop()
	if report == nil {
		return err
	}
	if err := errors.Join(o.show(report), err); err != nil {
		return err
	}
	if o.tried != nil && len(o.tried.Problems) > 0 {
		return fmt.Errorf("what kube-apiserver %s does not serve of it: %s", o.tried.Version, strings.Join(o.tried.Problems, "; "))
	}
	if !report.Healthy() {
		return fmt.Errorf("damaged keys: %d; differences from the manifest: %d", len(report.Problems), len(report.Differences))
	}
	return nil
}

// compareCluster refuses a snapshot of another cluster. With etcd lost there is none to compare.
func (o *options) compareCluster(ctx context.Context, decoder *objects.Decoder, file *history.File) error {
	if o.offline || !o.Connection.Configured() {
		return nil
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		o.Warn("not compared with the running cluster: %v", err)
		return nil
	}
	defer client.Close()
	return restore.CheckCluster(ctx, decoder, o.Connection.Prefix(), file, live)
}

func (o *options) show(r *snapshots.Report) error {
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, "SnapshotReport", struct {
			*snapshots.Report
			Started *trial.Report `json:"started,omitempty"`
		}{r, o.tried})
	}
	var names []string
	for name := range r.Resources {
		names = append(names, name)
	}
	slices.Sort(names)
	var rows [][]any
	for _, name := range names {
		resource := r.Resources[name]
		with := strings.Join(resource.EncryptedWith, ",")
		if with == "" {
			with = "<none>"
		}
		rows = append(rows, []any{name, resource.Objects, resource.Bytes, with})
	}
	columns := []factory.Column{{Name: "Resource"}, {Name: "Objects"}, {Name: "Bytes"}, {Name: "Encrypted with"}}
	if err := o.output.PrintTable(o.Out, columns, rows); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "\nRevisions %d to %d, %d keys, cluster %s.\nSHA-256 %s\n", r.Oldest, r.Newest, r.Keys, r.Cluster, r.SHA256)
	for _, problem := range r.Problems {
		fmt.Fprintf(o.Out, "Damaged: %s: %s\n", problem.Key, problem.Problem)
	}
	for _, difference := range r.Differences {
		fmt.Fprintf(o.Out, "Not as saved: %s\n", difference)
	}
	switch {
	case !r.Healthy():
	case r.Manifest:
		fmt.Fprintln(o.Out, "It restores, every object decodes, and it is what was saved.")
	default:
		fmt.Fprintln(o.Out, "It restores, and every object decodes.")
	}
	if o.tried != nil && len(o.tried.Problems) == 0 {
		fmt.Fprintf(o.Out, "kube-apiserver %s lists all of it: %d objects of %d resources.\n", o.tried.Version, o.tried.Objects, o.tried.Resources)
	}
	return nil
}
