package preflight

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/preflight"
	"kubelet-guard.io/pkg/dataprotection/restore"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

const (
	// membersTimeout is how long etcd may take to list its members.
	membersTimeout = 5 * time.Second
	// shownPods of a table; -o json has all.
	shownPods = 20
)

// runWhole compares a snapshot with etcd, and prints how to restore it as a whole.
func (o *options) runWhole(ctx context.Context) error {
	path, manifest, err := snapshots.Find(o.snapshot)
	if err != nil {
		return err
	}
	decoder, err := o.Connection.Decoder(ctx)
	if err != nil {
		return err
	}
	progress := factory.StartProgress(o.ErrOut, "Comparing the snapshot with etcd")
	whole, members, err := o.compareWhole(ctx, path, decoder)
	progress.Stop()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(members) == 0 && manifest != nil {
		members = manifest.Members
	}
	if len(members) == 0 {
		return fmt.Errorf("%s: the members of etcd are unknown: etcd lists none, and the snapshot has no manifest of guard-etcd save", path)
	}
	whole.SetCommands(path, o.dataDir, members)
	return o.showWhole(whole)
}

func (o *options) compareWhole(ctx context.Context, path string, decoder *objects.Decoder) (*preflight.Whole, []snapshots.Member, error) {
	file, err := o.Connection.OpenFile(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	client, live, err := o.Connection.Etcd(ctx)
	if err != nil {
		// The etcd that is to be replaced may well be gone.
		o.Warn("nothing is compared: %v", err)
		return preflight.WithoutEtcd(file), nil, nil
	}
	defer client.Close()
	if err := restore.CheckCluster(ctx, decoder, o.Connection.Prefix(), file, live); err != nil {
		if errors.Is(err, history.ErrNoSnapshot) || errors.Is(err, restore.ErrOtherCluster) {
			return nil, nil, err
		}
		o.Warn("%v", err)
	}
	whole, err := preflight.CompareWhole(ctx, file, live, decoder, o.Connection.Prefix())
	if err != nil {
		return nil, nil, err
	}
	return whole, o.members(ctx, client), nil
}

// members returns those that etcd lists; none with a warning if it does not.
func (o *options) members(ctx context.Context, client *clientv3.Client) []snapshots.Member {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	response, err := client.MemberList(ctx)
	if err != nil {
		o.Warn("etcd does not list its members: %v", err)
		return nil
	}
	var members []snapshots.Member
	for _, m := range response.Members {
		members = append(members, snapshots.Member{Name: m.Name, PeerURLs: m.PeerURLs})
	}
	return members
}

func (o *options) showWhole(w *preflight.Whole) error {
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, "WholeRestoreReport", w)
	}
	if w.Live != 0 {
		if err := o.showChanges(w); err != nil {
			return err
		}
	}
	fmt.Fprintf(o.Out, "Revision %d of the snapshot, %d of etcd.\n\nWith etcd and all API servers stopped, on each member's host its command:\n", w.Snapshot, w.Live)
	for _, command := range w.Commands {
		fmt.Fprintln(o.Out, "  "+command)
	}
	fmt.Fprintln(o.Out, "Then start etcd with that data directory, and the API servers.")
	return nil
}

func (o *options) showChanges(w *preflight.Whole) error {
	var rows [][]any
	for _, r := range w.Resources {
		rows = append(rows, []any{r.Resource, r.ComeBack, r.Lost, r.Older})
	}
	if err := o.output.PrintTable(o.Out, []factory.Column{{Name: "Resource"}, {Name: "Come back"}, {Name: "Lost"}, {Name: "Older"}}, rows); err != nil {
		return err
	}
	held := 0
	rows = nil
	for i, pod := range w.Pods {
		fate := "killed"
		if pod.Held {
			held++
			fate = "held"
		}
		if i < shownPods {
			rows = append(rows, []any{pod.Namespace, pod.Name, pod.Node, fate})
		}
	}
	fmt.Fprintf(o.Out, "\nRunning pods that lose their object: %d. Killed: %d; held by guarded nodes: %d.\n", len(w.Pods), len(w.Pods)-held, held)
	if len(rows) == 0 {
		return nil
	}
	if err := o.output.PrintTable(o.Out, []factory.Column{{Name: "Namespace"}, {Name: "Pod"}, {Name: "Node"}, {Name: "Fate"}}, rows); err != nil {
		return err
	}
	if len(w.Pods) > shownPods {
		fmt.Fprintf(o.Out, "... and %d more: -o json\n", len(w.Pods)-shownPods)
	}
	fmt.Fprintln(o.Out)
	return nil
}
