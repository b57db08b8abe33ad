// Command guard-installer brings a node to the kubelet that a roll-out asks for, and
// back. It runs in a pod of the DaemonSet that kubectl guard rollout makes.
package main

import (
	"fmt"
	"os"

	ctrl "sigs.k8s.io/controller-runtime"
)

func main() {
	if err := newCommand().ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "guard-installer:", err)
		os.Exit(1)
	}
}
