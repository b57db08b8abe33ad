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

	"kubelet-guard.io/cmd/kubectl-guard/internal/cli"
)

// completionName is the program that kubectl runs to complete the arguments of
// this plugin. A link of that name to this program is enough.
const completionName = "kubectl_complete-guard"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	command := cli.NewCommand(streams)
	arguments := os.Args[1:]
	if name := filepath.Base(os.Args[0]); strings.TrimSuffix(name, ".exe") == completionName {
		arguments = append([]string{cobra.ShellCompRequestCmd}, arguments...)
	}
	command.SetArgs(arguments)
	if err := command.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}
