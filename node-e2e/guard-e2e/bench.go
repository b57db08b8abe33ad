package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/node"
)

func newBenchCommand(o *options) *cobra.Command {
	var blocks, pods int
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure pod start, pod deletion and the kubelet's use of resources, guarded against stock",
		Long: `Measure pod start, pod deletion and the kubelet's use of resources, guarded
against stock, on one node whose kubelet is swapped back and forth. The
measurements go into <output>/e2e/guarded/bench.txt in Go's benchmark format; compare them
with

  go tool benchstat -col /kubelet _output/e2e/guarded/bench.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if blocks < 4 || blocks%4 != 0 {
				return fmt.Errorf("--blocks: must be a multiple of 4 (stock, guarded, guarded, stock), not %d", blocks)
			}
			if pods < 1 {
				return fmt.Errorf("--pods: must be at least 1, not %d", pods)
			}
			file := filepath.Join(o.outputDir, "e2e", string(node.Guarded), "bench.txt")
			return o.measure(cmd.Context(), cmd.ErrOrStderr(), "benchmark",
				"-bench-results="+file, fmt.Sprintf("-bench-blocks=%d", blocks), fmt.Sprintf("-bench-pods=%d", pods))
		},
	}
	cmd.Flags().IntVar(&blocks, "blocks", 12, "lives of a kubelet, half of them stock; a multiple of 4")
	cmd.Flags().IntVar(&pods, "pods", 6, "protected pods in a block, and as many unprotected ones")
	return cmd
}
