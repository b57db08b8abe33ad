package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/node-e2e/node"
)

func newDemoCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Run the incidents on a stock and on a guarded node and compare",
		Long: `Run the incidents on a stock and on a guarded node, side by side, and end with a
table. Every incident hits two pods of the same template, of which one carries
the label for protection; the table's figures are about that one, and
its last column about the other: an unprotected pod must meet the same fate with
both kubelets.

The exit code is not 0 when the guarded kubelet lost a protected pod, when an
explicit deletion was not honoured, or when an unprotected pod's fate differs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			outcomes := o.runNode(cmd.Context(), cmd.ErrOrStderr(), whole("incident", node.Stock, node.Guarded))
			if cmd.Context().Err() != nil {
				return errors.New("interrupted; the clusters are removed")
			}
			stock, stockVersion, err := incidents(outcomes[0])
			if err != nil {
				return err
			}
			guarded, guardedVersion, err := incidents(outcomes[1])
			if err != nil {
				return err
			}
			rows := compare(stock, guarded)
			fmt.Fprintln(cmd.OutOrStdout())
			writeTable(cmd.OutOrStdout(), stockVersion, guardedVersion, rows)
			for _, outcome := range outcomes {
				for _, failure := range specreport.Failures(outcome.report) {
					fmt.Fprintf(cmd.OutOrStdout(), "FAILED on %s: %s\n", outcome.name, failure)
				}
			}
			return errors.Join(outcomes[0].err, outcomes[1].err, verdict(rows))
		},
	}
}

// incidents returns the incidents of a run, and the version of its kubelet.
func incidents(o outcome) (found []node.IncidentResult, version string, err error) {
	if found, err = node.Incidents(o.report); err != nil {
		return nil, "", err
	}
	version, err = node.KubeletVersion(o.report)
	return found, version, err
}
