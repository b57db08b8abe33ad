package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/pkg/kubelet/guard"
)

// TestMain keeps upstream's own tests without a guard. Some of them call
// NewMainKubelet, which installs one for the process, over a container runtime
// that is gone when the next test starts. Tests of the hooks install their own.
func TestMain(m *testing.M) {
	os.Exit(runUnguarded(m))
}

func runUnguarded(m *testing.M) int {
	dir, err := os.MkdirTemp("", "guard-off-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	off := filepath.Join(dir, "guard.yaml")
	flags := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	guard.AddFlags(flags)
	content := fmt.Sprintf("apiVersion: %s\nkind: %s\nmode: %q\n", guard.ConfigAPIVersion, guard.ConfigKind, guard.Off)
	if err := os.WriteFile(off, []byte(content), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := flags.Set("guard-config", off); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
