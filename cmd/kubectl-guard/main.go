// Command kubectl-guard is the kubectl plugin of Kubelet Guard: with it on PATH,
// kubectl guard shows which nodes are guarded and which pods they hold, releases
// held pods, and labels running pods for protection.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	// Credentials of the providers that a kubeconfig may name.
	_ "k8s.io/client-go/plugin/pkg/client/auth"

	"kubelet-guard.io/cmd/kubectl-guard/internal/app"
	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
)

// completionName is the program that kubectl runs to complete the arguments of
// this plugin. A link of that name to this program is enough.
const completionName = "kubectl_complete-guard"

func main() {
	ctx := interruptible()
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	command := app.NewCommand(streams)
	arguments := os.Args[1:]
	if name := filepath.Base(os.Args[0]); strings.TrimSuffix(name, ".exe") == completionName {
		arguments = append([]string{cobra.ShellCompRequestCmd}, arguments...)
	}
	command.SetArgs(arguments)
	if err := command.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(exitcode.Of(err))
	}
}

// interruptible returns a context that ends with the first signal that ends programs: a key,
// a lost terminal, a reader of the output that is gone. What a command has to remove it
// removes then. A second Ctrl-C, or SIGTERM, ends the program at once; a terminal that is
// lost may send its signal several times.
func interruptible() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		<-signals
		cancel()
		signal.Reset(os.Interrupt, syscall.SIGTERM)
	}()
	return ctx
}
