package main

import (
	"github.com/spf13/cobra"
)

func newStopPathsCommand(o *options) *cobra.Command {
	var (
		check, write bool
		dir          string
	)
	cmd := &cobra.Command{
		Use:   "stop-paths",
		Short: "Compare the table of all stop paths with the guarded tree, and write docs/stop-paths.*",
		Long: `Compare the table of all stop paths with the guarded tree.

patches/v1.NN/stop-paths.yaml names every function of the kubelet that stops, removes
or reclaims what pods live on, and its callers, with the hook in front of it or the
reason why it needs none. The command type-checks the guarded tree and fails for a
caller that the table does not know, for one that is gone, and for a hook in another
place. With --write it only writes docs/stop-paths.md and docs/stop-paths.tsv from the
table.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			if write {
				if err := repo.WriteStopPaths(u, cmd.OutOrStdout()); err != nil || !check {
					return err
				}
			}
			return repo.CheckStopPaths(cmd.Context(), u, dir, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "compare with the tree; the default without --write")
	cmd.Flags().StringVar(&dir, "dir", "", "compare with the tree in this directory, for example _output/edit/v1.36; the default is the guarded tree")
	cmd.Flags().BoolVar(&write, "write", false, "write docs/stop-paths.md and docs/stop-paths.tsv")
	return cmd
}
