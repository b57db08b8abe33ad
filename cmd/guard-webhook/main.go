// Command guard-webhook is the admission webhook of Kubelet Guard.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "guard-webhook:", err)
		os.Exit(1)
	}
}
