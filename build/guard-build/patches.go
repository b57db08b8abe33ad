package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
)

func newPatchesCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "patches",
		Short: "Edit, check and move the patch series",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newApplyCommand(o),
		newExportCommand(o),
		o.command("sync", "Take the guard package and the in-tree tests of the checkout into the work tree, after an export",
			func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
				return repo.EditTree(u, out).Apply(ctx, false)
			}),
		o.command("verify", "Check the series: complete, small, applies without fuzz, exports to the same bytes",
			func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
				return repo.VerifyPatches(ctx, u, out)
			}),
		newRebaseCommand(o),
		o.command("series", "Write the series with the guard package as mails for git am, for a Kubernetes checkout",
			func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
				_, err := repo.WriteSeries(ctx, u, out)
				return err
			}),
		o.command("readme", "Write the tables of patches/README.md",
			func(_ context.Context, repo build.Repo, _ build.Upstream, out io.Writer) error {
				return repo.GenerateReadme(out)
			}),
	)
	return cmd
}

func newApplyCommand(o *options) *cobra.Command {
	var force bool
	cmd := o.command("apply", "Make the work tree _output/edit/v1.NN, one commit per patch",
		func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
			return repo.EditTree(u, out).Apply(ctx, force)
		})
	cmd.Flags().BoolVar(&force, "force", false, "discard work in the tree that was not exported")
	return cmd
}

func newExportCommand(o *options) *cobra.Command {
	var allowFewer bool
	cmd := o.command("export", "Write the commits of the work tree back to patches/v1.NN",
		func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
			return repo.EditTree(u, out).Export(ctx, allowFewer)
		})
	cmd.Flags().BoolVar(&allowFewer, "allow-fewer", false, "let the series become shorter")
	return cmd
}

func newRebaseCommand(o *options) *cobra.Command {
	var (
		to                        string
		finish, force, allowFewer bool
	)
	cmd := o.command("rebase --to vX.Y.Z", "Carry the series over to another upstream version, with git rebase, and compile it",
		func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
			if finish {
				return repo.FinishRebase(ctx, u, to, allowFewer, out)
			}
			return repo.Rebase(ctx, u, to, force, out)
		})
	cmd.Flags().StringVar(&to, "to", "", "upstream version to move to, for example v1.36.3")
	cmd.Flags().BoolVar(&finish, "finish", false, "write the result of a rebase without conflicts to patches/v1.NN")
	cmd.Flags().BoolVar(&force, "force", false, "discard a rebase that was not finished")
	cmd.Flags().BoolVar(&allowFewer, "allow-fewer", false, "with --finish: let the series become shorter")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}
