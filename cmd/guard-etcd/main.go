// Command guard-etcd restores what was deleted or damaged in the etcd of a Kubernetes control
// plane, from etcd's own history or from a snapshot, with its own UIDs. It is for administrators
// on a control plane host.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-etcd/internal/app"
)

func main() {
	// Libraries log what they return as errors, too. Without a logger klog writes errors to
	// stderr whatever its output is.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	// A restore ends between two transactions, with its journal complete.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	command := app.NewCommand(genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr})
	if err := command.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}
