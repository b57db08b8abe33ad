package main

import (
	"github.com/spf13/cobra"
)

func newPatchesCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "patches",
		Short: "Edit, check and move the patch series",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newApplyCommand(o), newExportCommand(o), newSyncCommand(o), newVerifyCommand(o), newRebaseCommand(o), newSeriesCommand(o), newReadmeCommand(o))
	return cmd
}

func newApplyCommand(o *options) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Make the work tree _output/edit/v1.NN, one commit per patch",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.EditTree(u, cmd.OutOrStdout()).Apply(cmd.Context(), force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "discard work in the tree that was not exported")
	return cmd
}

func newExportCommand(o *options) *cobra.Command {
	var allowFewer bool
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the commits of the work tree back to patches/v1.NN",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.EditTree(u, cmd.OutOrStdout()).Export(cmd.Context(), allowFewer)
		},
	}
	cmd.Flags().BoolVar(&allowFewer, "allow-fewer", false, "let the series become shorter")
	return cmd
}

func newSyncCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "sync",
		Short: "Commit changes of the guard package and the in-tree tests to the work tree",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.EditTree(u, cmd.OutOrStdout()).Sync(cmd.Context())
		},
	}
}

func newVerifyCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check the series: complete, small, applies without fuzz, exports to the same bytes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.VerifyPatches(cmd.Context(), u, cmd.OutOrStdout())
		},
	}
}

func newRebaseCommand(o *options) *cobra.Command {
	var (
		to                        string
		finish, force, allowFewer bool
	)
	cmd := &cobra.Command{
		Use:   "rebase --to vX.Y.Z",
		Short: "Carry the series over to another upstream version, with git rebase, and compile it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			if finish {
				return repo.FinishRebase(cmd.Context(), u, to, allowFewer, cmd.OutOrStdout())
			}
			return repo.Rebase(cmd.Context(), u, to, force, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "upstream version to move to, for example v1.36.3")
	cmd.Flags().BoolVar(&finish, "finish", false, "write the result of a rebase without conflicts to patches/v1.NN")
	cmd.Flags().BoolVar(&force, "force", false, "discard a rebase that was not finished")
	cmd.Flags().BoolVar(&allowFewer, "allow-fewer", false, "with --finish: let the series become shorter")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func newSeriesCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "series",
		Short: "Write the series with the guard package as mails for git am, for a Kubernetes checkout",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			_, err = repo.WriteSeries(cmd.Context(), u, cmd.OutOrStdout())
			return err
		},
	}
}

func newReadmeCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "readme",
		Short: "Write the tables of patches/README.md",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, _, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.GenerateReadme(cmd.OutOrStdout())
		},
	}
}
