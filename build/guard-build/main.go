// Command guard-build makes kubelets from upstream's source, the patch series and
// the guard package, and keeps the series.
package main

import (
	"context"
	"fmt"
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
		newNodeBinariesCommand(),
		newKindBinariesCommand(o),
		newFailingKubeletsCommand(o),
		newUnitCommand(),
		newTestCommand(o),
		newProveCommand(o),
		newStopPathsCommand(o),
		newTreeCommand(o),
		newVersionCommand(o),
		newPinCommand(o),
		newPatchesCommand(o),
	)
	return cmd
}
