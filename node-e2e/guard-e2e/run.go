package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/node"
)

func newRunCommand(o *options) *cobra.Command {
	var kubelets []string
	var labelFilter, stockLabelFilter, kubeletVersion, controlPlaneVersion string
	var attempts int
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the whole suite, or what a label filter selects",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var variants []node.Variant
			for _, kubelet := range kubelets {
				v, err := node.ParseVariant(kubelet)
				if err != nil {
					return fmt.Errorf("--kubelet: %w", err)
				}
				variants = append(variants, v)
			}
			parts := whole(labelFilter, variants...)
			for i := range parts {
				if parts[i].kubelet == node.Stock {
					parts[i].labels = allOf(labelFilter, stockLabelFilter)
				}
			}
			if o.provider != "kind" && !o.keep {
				parts = split(parts)
			}
			if o.provider == "kind" && kubeletVersion+controlPlaneVersion != "" {
				return errors.New("--kubelet-version, --control-plane-version: a kind cluster has the versions that it was made with")
			}
			outcomes := o.runNode(cmd.Context(), cmd.ErrOrStderr(), parts, fmt.Sprintf("-ginkgo.flake-attempts=%d", attempts),
				"-kubelet-version="+kubeletVersion, "-control-plane-version="+controlPlaneVersion)
			return finish(cmd.OutOrStdout(), outcomes)
		},
	}
	cmd.Flags().StringSliceVar(&kubelets, "kubelet", []string{string(node.Stock), string(node.Guarded)}, "kubelets to run the suite for, side by side")
	cmd.Flags().StringVar(&labelFilter, "label-filter", "", "Ginkgo label filter, for example 'incident' or 'guarded && !incident'")
	cmd.Flags().StringVar(&stockLabelFilter, "stock-label-filter", "", "further filter for the stock kubelet, for example '!incident'")
	cmd.Flags().StringVar(&kubeletVersion, "kubelet-version", "", "version of the kubelets, a folder below --output, for example v1.36.3; the default is what is in bin")
	cmd.Flags().StringVar(&controlPlaneVersion, "control-plane-version", "", "version of the control plane, a folder below --output; the default is that of the suite")
	cmd.Flags().IntVar(&attempts, "attempts", 1, "how often a failing spec is tried; a pod that died against expectation, a deletion that was not honoured and a failure of the guard count anyhow")
	return cmd
}

// split makes two parts of the guarded one, which has far more specs than the stock one.
// The second comes last, when the stock one has ended: the incidents, and the other faults
// of the control plane, so that both lines take about as long.
func split(parts []nodePart) []nodePart {
	all, last := slices.Clone(parts), []nodePart{}
	for i, part := range all {
		if part.kubelet == node.Guarded {
			all[i].labels = allOf(part.labels, "!incident && !chaos && !control-plane")
			part.name, part.labels = "incidents", allOf(part.labels, "incident || chaos || control-plane")
			last = append(last, part)
		}
	}
	return append(all, last...)
}
