package protect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// NewUnprotectCommand returns the verb unprotect.
func NewUnprotectCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New()}
	return o.command(&cobra.Command{
		Use:   "unprotect (KIND/NAME... | KIND -l SELECTOR)",
		Short: "Remove the protection label from running pods, in place",
		Long: `Remove the protection label from running pods, in place.

A held pod loses its hold with the label: the kubelet does at once what it wanted to
do. The command asks before that.

Where the policies of the control plane are installed, the label stays on a running
pod unless --override gives a reason. It is written to the pod with an expiry, counted
and audited, and needs the verb override on the pod (kubectl auth can-i override
pods).`,
		Example: `  kubectl guard unprotect deploy/web
  kubectl guard unprotect pod/web-0 --dry-run=client
  kubectl guard unprotect pod/web-0 --override 'node pool is retired, ticket 17'`,
	})
}

// defaultOverrideFor is enough for a retry and short enough not to be forgotten.
const defaultOverrideFor = 15 * time.Minute

// validateOverride reports an override that the webhook would not count.
func (o *options) validateOverride() error {
	o.override = strings.TrimSpace(o.override)
	switch {
	case o.flags.Changed("override") && o.override == "":
		return errors.New("--override: give the reason, such as --override 'ticket 17'")
	case o.flags.Changed("override-for") && o.override == "":
		return errors.New("--override-for goes with --override REASON")
	case o.override != "" && o.overrideFor < time.Minute:
		return fmt.Errorf("--override-for: %s is less than a minute", o.overrideFor)
	}
	return nil
}

// confirmHeld asks before the label of held pods is removed.
func (o *options) confirmHeld(ctx context.Context, pods []corev1.Pod) error {
	var held []string
	for i := range pods {
		if causes := heldBy(&pods[i]); causes != "" && pods[i].Labels[guard.ExplicitDeletionLabel] != "" {
			held = append(held, fmt.Sprintf("  %s/%s (%s)", pods[i].Namespace, pods[i].Name, causes))
		}
	}
	if len(held) == 0 {
		return nil
	}
	if !o.output.HumanReadable() {
		return fmt.Errorf("pods held: %d. Without the label the kubelet stops what it wanted to stop; give --yes to continue:\n%s", len(held), strings.Join(held, "\n"))
	}
	fmt.Fprintf(o.Out, "Pods held: %d. Without the label the kubelet does at once what it wanted to do:\n%s\n", len(held), strings.Join(held, "\n"))
	return o.Confirm(ctx, "Remove the label?")
}

// heldBy returns the cause in the pod's condition, or nothing when it is not held.
func heldBy(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == guard.PodKillRefused && condition.Status == corev1.ConditionTrue {
			return condition.Reason
		}
	}
	return ""
}
