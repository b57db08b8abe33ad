package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	e2e "kubelet-guard.io/node-e2e"
)

func newDemoCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Run the incidents on a stock and on a guarded node and compare",
		Long: `Run the incidents on a stock and on a guarded node, side by side, and end with a
table. Every incident hits two pods of the same template, of which one carries
the label that asks for protection; the table's figures are about that one, and
its last column about the other: an unprotected pod must meet the same fate with
both kubelets.

The exit code is not 0 when the guarded kubelet lost a protected pod, when an
explicit deletion was not honoured, or when an unprotected pod's fate differs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			outcomes := o.runSuites(cmd.Context(), cmd.ErrOrStderr(), whole("incident", e2e.Stock, e2e.Guarded))
			if cmd.Context().Err() != nil {
				return errors.New("interrupted; the clusters are removed")
			}
			rows := compare(outcomes[0].results.Incidents, outcomes[1].results.Incidents)
			fmt.Fprintln(cmd.OutOrStdout())
			writeTable(cmd.OutOrStdout(), outcomes[0].results.Version, outcomes[1].results.Version, rows)
			for _, outcome := range outcomes {
				for _, failure := range outcome.results.Failures {
					fmt.Fprintf(cmd.OutOrStdout(), "FAILED on %s: %s\n", outcome.kubelet, failure)
				}
			}
			return errors.Join(outcomes[0].err, outcomes[1].err, verdict(rows))
		},
	}
}
