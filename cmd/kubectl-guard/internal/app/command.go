// Package app assembles the command kubectl guard. Each verb is a package of this folder's
// parent, named as the verb; its options implement verb.Verb: Complete, Validate, Run.
//
// What is held is known to the kubelets alone, since the object of a held pod may be gone:
// every verb starts with a query of the nodes. A node that does not respond never fails a
// command; it is shown.
//
// The tests of the verbs are here as well: they run whole commands against an API server in
// this process, and compare the output with the files in testdata.
package app

import (
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/holds"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/protect"
	"kubelet-guard.io/cmd/kubectl-guard/internal/release"
	"kubelet-guard.io/cmd/kubectl-guard/internal/rollout"
	"kubelet-guard.io/cmd/kubectl-guard/internal/status"
	versionverb "kubelet-guard.io/cmd/kubectl-guard/internal/version"
	"kubelet-guard.io/cmd/kubectl-guard/internal/why"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/version"
)

// NewCommand returns the command kubectl guard. Errors are returned, not printed.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	return newCommand(factory.New(streams, time.Now, time.Second))
}

func newCommand(s *factory.Factory) *cobra.Command {
	command := &cobra.Command{
		Use:   "kubectl-guard",
		Short: "Show and release what Kubelet Guard holds",
		Long: `Show and release what Kubelet Guard holds.

A guarded kubelet never stops a pod labelled ` + guard.ExplicitDeletionLabel + `=` + guard.ExplicitDeletionRequired + `
unless its deletion was requested through the API. A pod that it would have stopped
otherwise is held: it runs on until its deletion is requested, or the cause is over.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          factory.OnlyCommands,
		Version:       version.String(),
		RunE:          func(command *cobra.Command, _ []string) error { return command.Help() },
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl guard"},
	}
	command.SetIn(s.In)
	command.SetOut(s.Out)
	command.SetErr(s.ErrOut)
	s.Flags.AddFlags(command.PersistentFlags())
	command.PersistentFlags().DurationVar(&s.NodeTimeout, "node-timeout", nodes.DefaultTimeout, "How long one kubelet may take to respond")
	command.AddCommand(
		status.NewCommand(s), holds.NewCommand(s), why.NewCommand(s),
		release.NewCommand(s), protect.NewProtectCommand(s), protect.NewUnprotectCommand(s),
		rollout.NewCommand(s), versionverb.NewCommand(s),
	)
	completion.Flags(s, command)
	return command
}
