// Command guard-build makes kubelets from upstream's source, the patch series and
// the guard package, and keeps the series.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// options are the flags of all subcommands.
type options struct {
	kubeVersion string
}

// resolve finds the checkout and the upstream pin.
func (o *options) resolve() (build.Repo, build.Upstream, error) {
	repo, err := build.FindRepo(".")
	if err != nil {
		return build.Repo{}, build.Upstream{}, err
	}
	u, err := repo.Upstream(o.kubeVersion)
	return repo, u, err
}

// command makes a subcommand that works on the patches of one upstream version.
func (o *options) command(use, short string, run func(context.Context, build.Repo, build.Upstream, io.Writer) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			repo, u, err := o.resolve()
			if err != nil {
				return err
			}
			return run(cmd.Context(), repo, u, cmd.OutOrStdout())
		},
	}
}

func newCommand() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:           "guard-build",
		Short:         "Build guarded kubelets and keep the patch series",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		// Only with something to run does cobra refuse an unknown subcommand.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&o.kubeVersion, "kube-version", os.Getenv("KUBE_VERSION"),
		"upstream version, for example v1.36.3 or 1.36; the default is "+build.KubeVersion+" (environment: KUBE_VERSION)")
	cmd.AddCommand(
		newBinariesCommand(o, "kubelet", "Build the guarded kubelet", []build.Binary{build.Kubelet}),
		newBinariesCommand(o, "kubelet-stock", "Build the kubelet without the guard", []build.Binary{build.StockKubelet}),
		newBinariesCommand(o, "control-plane", "Build the unpatched control plane and kubectl", build.ControlPlane),
		o.command("node-binaries", "Build what a node needs besides Kubernetes: etcd, containerd, runc, CNI plugins, images",
			func(ctx context.Context, repo build.Repo, _ build.Upstream, out io.Writer) error {
				return repo.BuildNodeBinaries(ctx, out)
			}),
		o.command("kind-binaries", "Build the remaining binaries of a kind cluster: kubeadm, kube-proxy, CoreDNS, the pod network",
			func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
				return repo.BuildKindBinaries(ctx, u, out)
			}),
		o.command("failing-kubelets", "Build kubelets that fail on purpose, to test rollback: one that does not start, one without the guard",
			func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
				return repo.BuildFailing(ctx, u, out)
			}),
		newUnitCommand(),
		newTestCommand(o),
		newProveCommand(o),
		newStopPathsCommand(o),
		newTreeCommand(o),
		o.command("version", "Print the version that the guarded kubelet of --kube-version reports",
			func(_ context.Context, _ build.Repo, u build.Upstream, out io.Writer) error {
				_, err := fmt.Fprintln(out, build.GuardedVersion(u.Version))
				return err
			}),
		o.command("pin", "Make patches/v1.NN/go.mod and go.sum from the upstream archive",
			func(ctx context.Context, repo build.Repo, u build.Upstream, out io.Writer) error {
				return repo.Pin(ctx, u, out)
			}),
		newPatchesCommand(o),
		newReleaseCommand(o),
		newVerifyReleaseCommand(),
		newVulncheckCommand(o),
	)
	return cmd
}
