package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
)

func newTestCommand(o *options) *cobra.Command {
	tree, hooks := string(build.Guarded), false
	cmd := &cobra.Command{
		Use:   "test [package pattern...]",
		Short: "Run upstream's kubelet tests and the in-tree hook tests",
		Long: `Run upstream's kubelet tests and the in-tree hook tests in a prepared tree.

Tests that fail are run again alone. What still fails is run in the stock tree:
a test that fails there too is reported as such. Expected deviations are listed in
patches/v1.NN/upstream-tests.yaml. What then remains makes the command fail.`,
		RunE: func(cmd *cobra.Command, patterns []string) error {
			if tree != string(build.Stock) && tree != string(build.Guarded) {
				return fmt.Errorf("--tree: %q is neither %s nor %s", tree, build.Stock, build.Guarded)
			}
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			var summary build.TestSummary
			switch {
			case !hooks:
				summary, err = repo.TestUpstream(cmd.Context(), u, build.Tree(tree), patterns, cmd.OutOrStdout())
			case tree != string(build.Guarded) || len(patterns) > 0:
				return errors.New("--hooks: the tests of all hooks, in the guarded tree; leave out --tree and the package patterns")
			default:
				summary, err = repo.TestHooks(cmd.Context(), u, cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			summary.Print(cmd.OutOrStdout())
			if summary.Failed > 0 {
				return fmt.Errorf("%d upstream tests fail in the %s tree", summary.Failed, tree)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&tree, "tree", tree, "tree to test: guarded or stock")
	cmd.Flags().BoolVar(&hooks, "hooks", false, "run the tests of the hooks alone, which patches/tests has")
	return cmd
}

func newUnitCommand() *cobra.Command {
	var race []string
	cmd := &cobra.Command{
		Use:   "unit [package pattern...]",
		Short: "Run the unit tests of this repository, with a line per package and a total",
		RunE: func(cmd *cobra.Command, patterns []string) error {
			repo, err := build.FindRepo(".")
			if err != nil {
				return err
			}
			if len(patterns) == 0 {
				patterns = []string{"./..."}
			}
			summary, err := repo.TestUnit(cmd.Context(), patterns, race, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			summary.Print(cmd.OutOrStdout())
			if summary.Failed > 0 {
				return fmt.Errorf("%d unit tests fail", summary.Failed)
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVar(&race, "race", nil, "patterns of packages to test with the race detector")
	return cmd
}
