package main

import (
	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
	"kubelet-guard.io/build/vulncheck"
)

func newVulncheckCommand(o *options) *cobra.Command {
	c := vulncheck.Checker{}
	cmd := &cobra.Command{
		Use:   "vulncheck",
		Short: "Compare what govulncheck finds in programs and kubelets with the verdicts",
		Long: `Compare what govulncheck finds in the source of the programs and in the guarded kubelets
with build/vulncheck/verdicts.yaml. A finding without a verdict fails, and so does a verdict
without a finding, or "not-linked" for a package that is in the kubelet.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Repo, err = build.FindRepo("."); err != nil {
				return err
			}
			if c.Upstreams, err = o.upstreams(c.Repo); err != nil {
				return err
			}
			return c.Check(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&c.Database, "db", "", "folder data/osv of the repository golang/vulndb; the default is the public database")
	return cmd
}
