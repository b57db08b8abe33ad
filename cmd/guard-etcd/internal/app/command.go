// Package app assembles the command guard-etcd. Each verb is a package of this folder's parent,
// named as the verb; its options implement verb.Verb: Complete, Validate, Run.
package app

import (
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"kubelet-guard.io/cmd/guard-etcd/internal/access"
	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/cmd/guard-etcd/internal/log"
	"kubelet-guard.io/cmd/guard-etcd/internal/pods"
	"kubelet-guard.io/cmd/guard-etcd/internal/preflight"
	"kubelet-guard.io/cmd/guard-etcd/internal/restore"
	"kubelet-guard.io/cmd/guard-etcd/internal/save"
	"kubelet-guard.io/cmd/guard-etcd/internal/scan"
	"kubelet-guard.io/cmd/guard-etcd/internal/verify"
	"kubelet-guard.io/pkg/version"
)

// NewCommand returns the command guard-etcd. Errors are returned, not printed.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	f := factory.New(streams)
	command := &cobra.Command{
		Use:   "guard-etcd",
		Short: "Restore what was deleted or damaged in etcd",
		Long: `Restore what was deleted or damaged in etcd, from its own history or from a
snapshot, with its own UIDs.

etcd keeps what was deleted until a compaction removes it: for 5 to 10 minutes
where the API server compacts, which is the default. On a kubeadm control plane
host no flag is needed: the API server's manifest says how etcd is reached.
Only restore --apply, pods --apply and scan --revert --apply write to etcd.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		Version:       version.String(),
		RunE:          func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	command.SetIn(f.In)
	command.SetOut(f.Out)
	command.SetErr(f.ErrOut)
	f.Connection.AddFlags(command)
	command.AddCommand(access.NewCommand(f), log.NewCommand(f), pods.NewCommand(f), preflight.NewCommand(f), restore.NewCommand(f), save.NewCommand(f),
		scan.NewCommand(f), verify.NewCommand(f))
	completeNoFiles(command)
	return command
}
