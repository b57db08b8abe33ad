package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
)

func newControlPlaneCommand(o *options) *cobra.Command {
	var labels, manifests, version string
	var attempts int
	cmd := &cobra.Command{
		Use:   "controlplane",
		Short: "Run the control plane suite on a cluster of its own",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			outcomes := o.runAll(cmd.Context(), cmd.ErrOrStderr(), 1, []suiteRun{{
				name: "control", program: "controlplane-e2e.test", test: "TestControlPlane", target: "make controlplane-e2e",
				files:  filepath.Join(o.outputDir, "e2e", "controlplane", "suite"),
				labels: labels,
				arguments: []string{
					"-cluster=controlplane",
					"-manifests=" + manifests,
					"-kubernetes-version=" + version,
					fmt.Sprintf("-ginkgo.flake-attempts=%d", attempts),
				},
			}})
			return finish(cmd.OutOrStdout(), outcomes)
		},
	}
	cmd.Flags().StringVar(&labels, "label-filter", "", "Ginkgo label filter")
	cmd.Flags().StringVar(&version, "kubernetes-version", build.KubeVersion, "version of control plane and kubelet, a folder below --output")
	cmd.Flags().IntVar(&attempts, "attempts", 1, "how often a failing spec is tried")
	cmd.Flags().StringVar(&manifests, "manifests", "manifests", "folder with the manifests")
	return cmd
}
