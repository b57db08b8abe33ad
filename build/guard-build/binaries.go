package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
)

// newBinariesCommand makes a subcommand that builds a fixed set of programs.
func newBinariesCommand(o *options, use, short string, binaries []build.Binary) *cobra.Command {
	var (
		goarch    string
		reproduce bool
	)
	cmd := o.command(use, short, func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
		if err := repo.Build(ctx, u, goarch, binaries, out); err != nil || !reproduce {
			return err
		}
		return repo.VerifyReproducible(ctx, u, goarch, binaries, out)
	})
	cmd.Flags().StringVar(&goarch, "goarch", "", "architecture to build for; the default is this machine's")
	cmd.Flags().BoolVar(&reproduce, "verify-reproducible", false, "build again elsewhere with an empty cache, and compare the bytes")
	return cmd
}

func newTreeCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:       "tree {stock|guarded}",
		Short:     "Prepare a source tree and print its directory",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{string(build.Stock), string(build.Guarded)},
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			dir, err := repo.Prepare(cmd.Context(), u, build.Tree(args[0]), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), dir)
			return nil
		},
	}
}
