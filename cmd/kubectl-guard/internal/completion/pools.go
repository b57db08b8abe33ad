package completion

import (
	"context"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/rollout"
)

// Pools offers the names of the pools.
func Pools(s *factory.Factory) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return from(s, command, arguments, prefix, func(ctx context.Context, c *factory.Clients) []string {
			list, err := c.Kube.AppsV1().DaemonSets(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel, Limit: limit})
			if err != nil {
				return nil
			}
			var names []string
			for _, set := range list.Items {
				names = append(names, set.Labels[rollout.PoolLabel])
			}
			return names
		})
	}
}
