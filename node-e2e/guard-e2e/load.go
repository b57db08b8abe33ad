package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/node"
)

func newLoadCommand(o *options) *cobra.Command {
	var pods int
	var window, later time.Duration
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Count the API requests of a node with many held pods",
		Long: `Count the API requests of a node with many held pods, live and after a
restart of the kubelet, against the stock kubelet without such pods. The table goes into
<output>/e2e/guarded/load.md and is printed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pods < 1 {
				return fmt.Errorf("--pods: must be at least 1, not %d", pods)
			}
			file := filepath.Join(o.outputDir, "e2e", string(node.Guarded), "load.md")
			err := o.measure(cmd.Context(), cmd.ErrOrStderr(), "load",
				"-load-results="+file, fmt.Sprintf("-load-pods=%d", pods), fmt.Sprintf("-load-window=%s", window), fmt.Sprintf("-load-later=%s", later))
			if table, err := os.ReadFile(file); err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s", table)
			}
			return err
		},
	}
	cmd.Flags().IntVar(&pods, "pods", 110, "protected pods that are held")
	cmd.Flags().DurationVar(&window, "window", 2*time.Minute, "how long the requests of one row are counted")
	cmd.Flags().DurationVar(&later, "later", 20*time.Minute, "how long after the start the second count is made")
	return cmd
}
