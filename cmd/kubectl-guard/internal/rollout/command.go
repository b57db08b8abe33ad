// Package rollout has the verbs of kubectl guard rollout, a file each: start, status, pause,
// resume, undo and uninstall. start inspects all nodes (inspect.go) before it changes one.
package rollout

import (
	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/rollout"
)

// NewCommand returns the command rollout with its verbs.
func NewCommand(s *factory.Factory) *cobra.Command {
	command := &cobra.Command{
		Use:   "rollout",
		Short: "Roll the guarded kubelet out to pools of nodes, and remove it",
		Long: `Roll the guarded kubelet out to pools of nodes, and remove it.

A pool is a name and a selector of nodes. Each has a DaemonSet of installers in the
namespace ` + rollout.Namespace + `. Kubernetes replaces the installers, at most
--max-unavailable at a time; each one exchanges the kubelet of its node, checks that it
is healthy and guarded and that the same containers run, and otherwise rolls back
and is not ready, so that the roll-out stops there.

The documented order is one pool after the other, Audit first, then Enforce.`,
		Example: `  kubectl guard rollout start --pool blue=pool=blue --mode Audit --image IMAGE
  kubectl guard rollout status
  kubectl guard rollout start --pool blue --mode Enforce
  kubectl guard rollout undo --pool blue`,
		Args: factory.OnlyCommands,
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	command.AddCommand(
		newStartCommand(s), newStatusCommand(s), newPauseCommand(s),
		newResumeCommand(s), newUndoCommand(s), newUninstallCommand(s),
	)
	return command
}
