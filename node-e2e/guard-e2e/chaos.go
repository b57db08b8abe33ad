package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newChaosCommand(o *options) *cobra.Command {
	var kills int
	var seed uint64
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Kill the guarded kubelet at random moments while pods come, go and break",
		Long: `Kill the guarded kubelet with SIGKILL at random moments, while pods are created,
deleted, labelled, damaged and released, and check the fate of each pod.

The seed decides everything that the run does; it is printed first and last. The
same seed makes the same operations in the same order, and the fate of each
pod follows from it, too. A run of fewer kills is the start of a longer
one. What differs between two runs is the kubelet's own timing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kills < 1 {
				return fmt.Errorf("--kills: must be at least 1, not %d", kills)
			}
			return o.measure(cmd.Context(), cmd.ErrOrStderr(), "chaos",
				fmt.Sprintf("-chaos-kills=%d", kills), fmt.Sprintf("-chaos-seed=%d", seed))
		},
	}
	cmd.Flags().IntVar(&kills, "kills", 200, "how often to kill the kubelet")
	cmd.Flags().Uint64Var(&seed, "seed", 0, "seed that repeats a run's decisions; 0 takes one by chance")
	return cmd
}
