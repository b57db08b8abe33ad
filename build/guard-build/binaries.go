package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
)

// newBinariesCommand makes a subcommand that builds a fixed set of programs.
func newBinariesCommand(o *options, use, short string, binaries []build.Binary) *cobra.Command {
	var (
		goarch    string
		reproduce bool
	)
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			if err := repo.Build(cmd.Context(), u, goarch, binaries, cmd.OutOrStdout()); err != nil || !reproduce {
				return err
			}
			return repo.VerifyReproducible(cmd.Context(), u, goarch, binaries, cmd.OutOrStdout())
		},
	}
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

func newVersionCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version that the guarded kubelet of --kube-version reports",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, u, err := o.resolve()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), build.GuardedVersion(u.Version))
			return nil
		},
	}
}

func newPinCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "pin",
		Short: "Make patches/v1.NN/go.mod and go.sum from the upstream archive",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.Pin(cmd.Context(), u, cmd.OutOrStdout())
		},
	}
}

func newNodeBinariesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "node-binaries",
		Short: "Build what a node needs besides Kubernetes: etcd, containerd, runc, CNI plugins, images",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, err := build.FindRepo(".")
			if err != nil {
				return err
			}
			return repo.BuildNodeBinaries(cmd.Context(), cmd.OutOrStdout())
		},
	}
}

func newKindBinariesCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "kind-binaries",
		Short: "Build the remaining binaries of a kind cluster: kubeadm, kube-proxy, CoreDNS, the pod network",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.BuildKindBinaries(cmd.Context(), u, cmd.OutOrStdout())
		},
	}
}

func newFailingKubeletsCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "failing-kubelets",
		Short: "Build kubelets that fail on purpose, to test rollback: one that does not start, one without the guard",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return repo.BuildFailing(cmd.Context(), u, cmd.OutOrStdout())
		},
	}
}
