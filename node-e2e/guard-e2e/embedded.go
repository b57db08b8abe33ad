package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/embedded"
)

func newUpCommand(o *options) *cobra.Command {
	var (
		config  embedded.Config
		version string
		detach  bool
		timeout time.Duration
	)
	command := &cobra.Command{
		Use:   "up",
		Short: "Start a one-node cluster and keep it until Ctrl-C, or longer with --detach",
		Long: `Start a one-node cluster out of the programs in _output and keep it until Ctrl-C, or longer with --detach.

The kubelet is _output/bin/kubelet, the guarded one, unless --kubelet names
another. Pods use the image ` + embedded.WorkloadImage + ` with
imagePullPolicy IfNotPresent or Never; no other image can be pulled.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			config.Dir = filepath.Join(o.outputDir, "clusters", config.Name)
			config.NodeDir = filepath.Join(o.outputDir, "node", "bin")
			config.KubeDir = filepath.Join(o.outputDir, version)
			if config.Kubelet == "" {
				config.Kubelet = filepath.Join(o.outputDir, "bin", "kubelet")
			}
			config.Log = command.ErrOrStderr()
			// The second signal ends the program at once, as nothing here would.
			context.AfterFunc(command.Context(), func() { signal.Reset(os.Interrupt, syscall.SIGTERM) })
			return up(command.Context(), command.OutOrStdout(), config, detach, timeout)
		},
	}
	flags := command.Flags()
	flags.StringVar(&config.Name, "name", "dev", "name of the cluster")
	flags.StringVar(&config.Kubelet, "kubelet", "", "kubelet to run (default <output>/bin/kubelet)")
	flags.StringVar(&config.GuardConfig, "guard-config", "", "guard configuration file to pass to the kubelet; only a guarded kubelet has the flag")
	flags.StringVar(&version, "kube-version", build.KubeVersion, "version of the control plane, a folder below --output")
	flags.BoolVar(&detach, "detach", false, "return when the cluster is ready and leave it running")
	flags.DurationVar(&timeout, "timeout", 3*time.Minute, "how long the start may take")
	return command
}

func up(ctx context.Context, out io.Writer, config embedded.Config, detach bool, timeout time.Duration) error {
	starting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cluster, err := embedded.Start(starting, config)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Cluster %s is ready. Use it with:\n\n  %s --kubeconfig %s get pods -A\n\n",
		cluster.Name(), filepath.Join(config.KubeDir, "kubectl"), cluster.Kubeconfig())
	if detach {
		fmt.Fprintf(out, "Remove it with: guard-e2e down %s\n", cluster.Name())
		return cluster.Detach()
	}
	fmt.Fprintln(out, "Ctrl-C removes it.")
	if cluster.Wait(ctx) == nil {
		return errors.New("the cluster was removed by another program")
	}
	fmt.Fprintln(out, "Removing the cluster.")
	return stop(ctx, cluster.Stop)
}

// stop runs a clean-up that a signal must not cut short.
func stop(ctx context.Context, clean func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return clean(ctx)
}

func newDownCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "down NAME...",
		Short: "End one-node clusters and remove them, running or crashed; their logs stay",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, names []string) error {
			for _, name := range names {
				dir := filepath.Join(o.outputDir, "clusters", name)
				if _, err := os.Stat(dir); err != nil {
					return fmt.Errorf("cluster %q: %w", name, err)
				}
				err := stop(command.Context(), func(ctx context.Context) error { return embedded.Remove(ctx, dir) })
				if err != nil {
					return fmt.Errorf("cluster %q: %w", name, err)
				}
				fmt.Fprintf(command.OutOrStdout(), "Cluster %s is removed; its logs are in %s\n", name, filepath.Join(dir, "logs"))
			}
			return nil
		},
	}
}

func newListCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the one-node clusters that run, and what crashed ones left",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			clusters, err := embedded.List(filepath.Join(o.outputDir, "clusters"))
			if err != nil {
				return err
			}
			table := tabwriter.NewWriter(command.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(table, "NAME\tSTATE\tAGE\tKUBELET\tKUBECONFIG")
			for _, cluster := range clusters {
				state := "running"
				if !cluster.Running {
					state = "incomplete (running: " + strings.Join(cluster.Parts, ",") + ")"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", cluster.Name, state,
					time.Since(cluster.Created).Round(time.Second), cluster.Kubelet, cluster.Kubeconfig)
			}
			return table.Flush()
		},
	}
}
