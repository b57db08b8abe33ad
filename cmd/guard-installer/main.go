// Command guard-installer brings a node to the kubelet that a roll-out requests, and
// back. It runs in a pod of the DaemonSet that kubectl guard rollout makes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A second signal does not end it: a change that has started is finished.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "guard-installer:", err)
		os.Exit(1)
	}
}
