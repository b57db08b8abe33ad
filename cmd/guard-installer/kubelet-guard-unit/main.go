// Command kubelet-guard-unit writes, checks and removes the drop-in of the package
// kubelet-guard. The scripts of the package call it, and administrators after a change
// of kubelet.service.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/pkg/version"
)

// systemdTimeout bounds the questions to systemd.
const systemdTimeout = 30 * time.Second

func main() {
	if err := newCommand(os.Stdout, os.Stderr).Execute(); err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(os.Stderr, "kubelet-guard:", strings.TrimSpace(line))
		}
		os.Exit(1)
	}
}

func newCommand(out, errOut io.Writer) *cobra.Command {
	command := &cobra.Command{
		Use:   "kubelet-guard-unit",
		Short: "Have kubelet.service run the guarded kubelet with the arguments that it has",
		Long: `Have kubelet.service run the guarded kubelet with the arguments that it has.

The package writes a drop-in of kubelet.service when it is installed and removes it
again. Run apply after a change of the unit, then restart the kubelet.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		Version:       version.String(),
	}
	command.CompletionOptions.DisableDefaultCmd = true
	node := &machine{root: "/", state: state, out: out, errOut: errOut}
	for _, c := range []struct {
		name, short string
		run         func() error
	}{
		{"show", "Print the drop-in that apply would write", node.show},
		{"apply", "Write the drop-in, or say why not; the kubelet is not restarted", node.apply},
		{"check", "Fail when the command of the unit has changed since the drop-in was written", node.check},
		{"remove", "Remove the drop-in and warn of what the next start of the kubelet stops", node.remove},
	} {
		command.AddCommand(&cobra.Command{
			Use: c.name, Short: c.short, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return c.run() },
		})
	}
	return command
}

// state asks systemd for the state of kubelet.service. It is empty where systemd does
// not run for this root, as when an image is made.
func state() (systemd.Unit, error) {
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, os.ErrNotExist) {
		return systemd.Unit{}, nil
	}
	own, err := os.Stat("/")
	if err != nil {
		return systemd.Unit{}, err
	}
	if first, err := os.Stat("/proc/1/root"); err == nil && !os.SameFile(own, first) {
		return systemd.Unit{}, nil // a systemd outside of this chroot
	}
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	return systemd.Manager{Root: host.Root("/")}.Unit(ctx, kubeletUnit)
}
