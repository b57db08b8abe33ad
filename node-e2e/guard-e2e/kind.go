package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/cluster/kind"
)

func newKindCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kind",
		Short: "Bring up and take down kind clusters with guarded nodes",
		Long: `Bring up and take down kind clusters with pools of stock and guarded nodes. No
registry is needed: the node image is made of Debian packages and of what
"make binaries kind-binaries" built. Needs root, unless Docker Engine runs already.

Kubeconfig and state of a cluster are in _output/kind/NAME.`,
	}
	var name string
	cmd.PersistentFlags().StringVar(&name, "name", "guard", "name of the cluster")
	cmd.AddCommand(newKindUpCommand(o, &name), newKindDownCommand(o, &name), newKindLoadCommand(o, &name), newKindLogsCommand(o, &name), newKindRunCommand(o, &name))
	return cmd
}

func newKindUpCommand(o *options, name *string) *cobra.Command {
	var pools, kubeVersion string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a cluster up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parsed, err := kind.ParsePools(pools)
			if err != nil {
				return fmt.Errorf("--pools: %w", err)
			}
			started := time.Now()
			cluster, err := kind.Up(cmd.Context(), kind.Config{
				Name: *name, Pools: parsed, Output: o.outputDir, KubeVersion: kubeVersion, Log: cmd.ErrOrStderr(),
			})
			if err != nil {
				return err
			}
			for _, node := range cluster.Nodes() {
				kubelet := "stock"
				if node.Guarded() {
					kubelet = "guarded"
				}
				pool := node.Pool()
				if pool == "" {
					pool = "control plane"
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "  %-30s %-15s %-15s %s kubelet\n", node.Name(), node.Address(), pool, kubelet)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Ready after %s\n", time.Since(started).Round(time.Second))
			fmt.Fprintf(cmd.OutOrStdout(), "export KUBECONFIG=%s\n", cluster.Kubeconfig())
			if host := cluster.DockerHost(); host != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "export DOCKER_HOST=%s\n", host)
			}
			return nil
		},
	}
	addClusterFlags(cmd, &pools, &kubeVersion)
	return cmd
}

// addClusterFlags adds the flags that say what a cluster is made of.
func addClusterFlags(cmd *cobra.Command, pools, kubeVersion *string) {
	cmd.Flags().StringVar(pools, "pools", kind.DefaultPools, "pools of workers: name=nodes, with :guarded for the guarded kubelet")
	cmd.Flags().StringVar(kubeVersion, "kube-version", "", "version of Kubernetes, a folder below --output, for example v1.36.3; the default is that of the kubelets in bin")
}

func newKindDownCommand(o *options, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take a cluster down",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return kind.Remove(cmd.Context(), o.outputDir, *name)
		},
	}
}

func newKindLoadCommand(o *options, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "load ARCHIVE",
		Short: "Load the images in an archive of docker save into the nodes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Stat(args[0]); err != nil {
				return err
			}
			cluster, err := kind.Attach(cmd.Context(), o.outputDir, *name)
			if err != nil {
				return err
			}
			return cluster.LoadImage(cmd.Context(), args[0])
		},
	}
}

func newKindLogsCommand(o *options, name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "logs DIR",
		Short: "Collect the logs of the nodes and the objects of a cluster",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errors.New("DIR is empty")
			}
			cluster, err := kind.Attach(cmd.Context(), o.outputDir, *name)
			if err != nil {
				return err
			}
			return cluster.CollectLogs(cmd.Context(), args[0])
		},
	}
}

func newKindRunCommand(o *options, name *string) *cobra.Command {
	var pools, kubeVersion, logs string
	cmd := &cobra.Command{
		Use:   "run -- PROGRAM [ARGUMENTS]",
		Short: "Run a program, such as a suite, while a cluster is up",
		Long: `Run a program while a cluster is up. A cluster of that name that was up before is
used and stays up; otherwise one is made, and taken down afterwards unless --keep
is set. When the program fails, the logs of the nodes are collected first.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			parsed, err := kind.ParsePools(pools)
			if err != nil {
				return fmt.Errorf("--pools: %w", err)
			}
			ctx := cmd.Context()
			_, notUp := kind.Attach(ctx, o.outputDir, *name)
			cluster, err := kind.Up(ctx, kind.Config{Name: *name, Pools: parsed, Output: o.outputDir, KubeVersion: kubeVersion, Log: cmd.ErrOrStderr()})
			if err != nil {
				return err
			}
			defer func() {
				always, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
				defer cancel()
				if err != nil && logs != "" {
					err = errors.Join(err, cluster.CollectLogs(always, logs))
				}
				if notUp == nil || o.keep {
					fmt.Fprintf(cmd.ErrOrStderr(), "The cluster stays up: export KUBECONFIG=%s\n", cluster.Kubeconfig())
					return
				}
				err = errors.Join(err, cluster.Down(always))
			}()
			return runAttached(ctx, cmd, args)
		},
	}
	addClusterFlags(cmd, &pools, &kubeVersion)
	cmd.Flags().StringVar(&logs, "logs", "", "folder for the logs of the nodes when the program fails; empty collects none")
	return cmd
}

// runAttached runs a program with this one's output. On an interrupt the program gets
// one too, and time to clean up.
func runAttached(ctx context.Context, cmd *cobra.Command, args []string) error {
	program := exec.CommandContext(ctx, args[0], args[1:]...)
	program.Stdout, program.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
	// A group of its own keeps the terminal's Ctrl-C from the program, which would take a
	// second one, from here, as an order to end at once.
	program.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	program.Cancel = func() error { return program.Process.Signal(os.Interrupt) }
	program.WaitDelay = cleanupTime
	if err := program.Run(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}
