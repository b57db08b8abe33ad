// Command guard-e2e runs the suites, reports their results, and brings up the
// clusters that they run on. It builds nothing: make does.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/node"
)

func main() {
	// The suites clean their clusters up on an interrupt, so the program stays to
	// wait for them.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "guard-e2e",
		Short:         "Run the suites of the node, the control plane and the fleet, and clusters to try things on",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if _, err := node.NewProvider(o.provider, node.Options{}); err != nil {
				return fmt.Errorf("--provider: %w", err)
			}
			if o.cluster != "" && o.provider != "kind" {
				return fmt.Errorf("--cluster: suites share a cluster with --provider=kind only, not with %s", o.provider)
			}
			return nil
		},
	}
	flags := cmd.PersistentFlags()
	flags.StringVar(&o.outputDir, "output", "_output", "folder with the built programs; receives clusters/ and e2e/")
	flags.StringVar(&o.provider, "provider", "local", "who runs the clusters: local, or kind for one that is up (--cluster)")
	flags.StringVar(&o.cluster, "cluster", "", "name of the cluster for all kubelets (default: one for each, named after it; kind needs a name)")
	flags.BoolVar(&o.keep, "keep", false, "leave the clusters up and print how to use kubectl on them")
	flags.BoolVar(&o.failFast, "fail-fast", false, "end a suite with its first failed spec")
	cmd.AddCommand(newDemoCommand(&o), newRunCommand(&o), newChaosCommand(&o), newBenchCommand(&o), newLoadCommand(&o),
		newControlPlaneCommand(&o), newFleetCommand(&o), newSlowestCommand(&o),
		newUpCommand(&o), newDownCommand(&o), newListCommand(&o), newKindCommand(&o), newVMCommand(&o))
	return cmd
}
