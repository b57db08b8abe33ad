package main

import (
	"fmt"
	"regexp"

	"github.com/spf13/cobra"
)

func newProveCommand(o *options) *cobra.Command {
	var only string
	cmd := &cobra.Command{
		Use:   "prove",
		Short: "Disable the hooks one at a time and show which in-tree tests fail (a mutation test)",
		Long: `Disable the hooks one at a time and show which in-tree tests fail (a mutation test).

Every hunk of a patch that is more than an import is a hook. Without it the tree
is compiled and the in-tree tests whose names start with TestGuard
are run. The command fails when a hook or a cause has no test that fails.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var selected *regexp.Regexp
			if only != "" {
				var err error
				if selected, err = regexp.Compile(only); err != nil {
					return fmt.Errorf("--only: %w", err)
				}
			}
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			proofs, err := repo.ProveHooks(cmd.Context(), u, selected, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return repo.PrintProofs(proofs, selected == nil, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&only, "only", "", "regular expression that selects hooks by file, function and call")
	return cmd
}
