package main

import (
	"io/fs"
	"path/filepath"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/framework/specreport"
)

func newSlowestCommand(o *options) *cobra.Command {
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "slowest",
		Short: "List the twenty slowest specs of all suites that took over 30 s",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reports, err := readReports(filepath.Join(o.outputDir, "e2e"), time.Now().Add(-since))
			if err != nil {
				return err
			}
			printSlowest(cmd.OutOrStdout(), reports)
			return nil
		},
	}
	cmd.Flags().DurationVar(&since, "since", 24*time.Hour, "only of suites that started within this time")
	return cmd
}

// readReports reads the reports in a folder, of suites that started after a time. Other
// JSON files are left out.
func readReports(dir string, after time.Time) ([]types.Report, error) {
	var reports []types.Report
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if filepath.Ext(path) != ".json" {
			return nil
		}
		if report, err := specreport.Read(path); err == nil && report.StartTime.After(after) {
			reports = append(reports, report)
		}
		return nil
	})
	return reports, err
}
