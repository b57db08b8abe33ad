// Command guard-webhook is the admission webhook of Kubelet Guard.
package main

import (
	"fmt"
	"os"
	// Zone names of operation windows: an image of one program has no zone files.
	_ "time/tzdata"

	ctrl "sigs.k8s.io/controller-runtime"
)

func main() {
	if err := newCommand().ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "guard-webhook:", err)
		os.Exit(1)
	}
}
