// Package preflight is the verb preflight: what there is for an undo now.
package preflight

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/pkg/dataprotection/check"
	"kubelet-guard.io/pkg/dataprotection/deletions"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/preflight"
	"kubelet-guard.io/pkg/dataprotection/scan"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

type options struct {
	*factory.Factory
	output      factory.Output
	snapshotDir string
	dataDir     string
	// snapshot to restore as a whole; empty for the checks.
	snapshot string
}

// NewCommand returns the verb preflight.
func NewCommand(f *factory.Factory) *cobra.Command {
	o := &options{Factory: f}
	command := &cobra.Command{
		Use:   "preflight [SNAPSHOT]",
		Short: "Check what there is for a restore now",
		Long: `Check what a restore would need now: the versions of etcd, its history and when
the API server compacts it, whether every object can be decrypted and decoded,
the API server, and the snapshots of guard-etcd save. It writes nothing.

With SNAPSHOT, a file or a folder of guard-etcd save: what the restore of the
whole snapshot would change, by resource: objects that come back, that are lost,
and that become older; the running pods that would lose their object; and the
command of etcdutl for each member. Its --bump-revision continues above etcd's
revision: without it, API servers that run go on to show objects that are gone.
Events and Leases are not compared.

The exit code is 1 if there is a problem.`,
		Example: `  guard-etcd preflight
  guard-etcd preflight --snapshot-dir=/var/backups/etcd -o json
  guard-etcd preflight /var/backups/guard-etcd/20261130T230000Z`,
		Args: cobra.MaximumNArgs(1),
		RunE: verb.RunE(o),
	}
	o.output.AddFlags(command)
	command.Flags().StringVar(&o.snapshotDir, "snapshot-dir", factory.DefaultSnapshotDir, "Folder of guard-etcd save")
	command.Flags().StringVar(&o.dataDir, "data-dir", "/var/lib/etcd-restored", "Data directory in the command that restores SNAPSHOT; it must not be there yet")
	_ = command.MarkFlagDirname("snapshot-dir")
	return command
}

// Complete is part of verb.Verb.
func (o *options) Complete(_ *cobra.Command, arguments []string) error {
	if len(arguments) == 1 {
		o.snapshot = arguments[0]
	}
	return o.Connection.Complete()
}

// Validate is part of verb.Verb.
func (o *options) Validate() error { return o.output.Validate() }

// Run is part of verb.Verb.
func (o *options) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.snapshot != "" {
		return o.runWhole(ctx)
	}
	facts := &preflight.Facts{Now: o.Now(), SnapshotDir: o.snapshotDir}
	var err error
	if facts.Members, err = o.Connection.Members(ctx); err != nil {
		return err
	}
	if facts.Encryption, err = snapshots.ReadEncryptionConfig(o.Connection.EncryptionConfig()); err != nil {
		return err
	}
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	progress := factory.StartProgress(o.ErrOut, "Reading etcd")
	o.readEtcd(ctx, facts, decoder, progress.Set)
	progress.Stop()
	facts.APIServer, facts.APIErr = o.apiVersion()
	facts.Snapshots, facts.SnapshotErr = snapshots.List(o.snapshotDir)
	return o.output.PrintChecks(o.Out, "PreflightReport", preflight.Judge(facts))
}

func (o *options) readEtcd(ctx context.Context, facts *preflight.Facts, decoder *objects.Decoder, progress func(int)) {
	if !slices.ContainsFunc(facts.Members, func(m check.Member) bool { return m.Err == nil }) {
		// They are not waited for again.
		err := errors.New("no member of etcd responds")
		facts.HistoryErr, facts.ScanErr = err, err
		return
	}
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		facts.HistoryErr, facts.ScanErr = err, err
		return
	}
	defer client.Close()
	prefix := o.Connection.Prefix()
	facts.History, facts.HistoryErr = deletions.Read(ctx, live, decoder, prefix, deletions.Options{CompactionInterval: o.Connection.CompactionInterval()})
	facts.Scan, facts.ScanErr = scan.Run(ctx, live, nil, decoder, prefix, progress)
	facts.Cluster = cluster(ctx, live, decoder, prefix)
}

// cluster returns the UID of kube-system; empty if it is not readable.
func cluster(ctx context.Context, live *history.Live, decoder *objects.Decoder, prefix string) types.UID {
	key := prefix + "namespaces/kube-system"
	kv, err := live.Get(ctx, key, 0)
	if err != nil || kv == nil {
		return ""
	}
	object, err := decoder.Decode(ctx, key, kv.Value)
	if err != nil {
		return ""
	}
	return object.UID
}

func (o *options) apiVersion() (string, error) {
	config, err := o.Connection.RESTConfig()
	if err != nil {
		return "", err
	}
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return "", err
	}
	version, err := client.ServerVersion()
	if err != nil {
		return "", err
	}
	return version.GitVersion, nil
}
