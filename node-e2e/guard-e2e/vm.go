package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"kubelet-guard.io/node-e2e/framework/specreport"
	"kubelet-guard.io/node-e2e/node"
	"kubelet-guard.io/node-e2e/vm"
)

func newVMCommand(o *options) *cobra.Command {
	config := vm.Config{Log: os.Stderr}
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Run the node suite, or the test of the packages, in an emulated machine with cgroup v2",
	}
	cmd.PersistentFlags().StringVar(&config.ManifestDir, "manifests", "manifests", "folder with the manifests that a cluster of guarded nodes needs")
	cmd.AddCommand(newVMSuiteCommand(o, &config), newVMPackagesCommand(o, &config))
	return cmd
}

func newVMSuiteCommand(o *options, config *vm.Config) *cobra.Command {
	var kubelet, labelFilter, focus string
	cmd := &cobra.Command{
		Use:   "suite",
		Short: "Run specs of the node suite",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := node.ParseVariant(kubelet); err != nil {
				return fmt.Errorf("--kubelet: %w", err)
			}
			config.OutputDir = o.outputDir
			config.Command = []string{
				"bin/node-e2e.test", "-test.run=^TestNode$", "-test.timeout=0", "-kubelet=" + kubelet,
				"-output=/output", "-manifests=/manifests", "-ginkgo.json-report=/results/suite.json",
				"-ginkgo.label-filter=" + labelFilter, "-ginkgo.focus=" + focus, "-ginkgo.v", "-ginkgo.no-color", "-own-clock",
			}
			code, err := vm.Run(cmd.Context(), *config)
			if err != nil {
				return err
			}
			report, err := specreport.Read(filepath.Join(config.Results(), "suite.json"))
			if err != nil {
				return fmt.Errorf("the suite ended with exit code %d and without a report, see %s: %w", code, config.Results(), err)
			}
			version, err := node.KubeletVersion(report)
			if err != nil {
				return err
			}
			for _, failure := range specreport.Failures(report) {
				fmt.Fprintf(cmd.OutOrStdout(), "FAILED: %s\n", failure)
			}
			counts := specreport.Count(report)
			fmt.Fprintf(cmd.OutOrStdout(), "kubelet %s on cgroup v2: %s\n", version, counts)
			switch {
			case code != 0:
				return fmt.Errorf("the suite ended with exit code %d, see %s", code, config.Results())
			case counts.Passed == 0:
				return errors.New("no spec ran: --label-filter or --focus selects none")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&kubelet, "kubelet", string(node.Guarded), "kubelet of the node: stock or guarded")
	flags.StringVar(&labelFilter, "label-filter", "incident || clock", "Ginkgo label filter")
	flags.StringVar(&focus, "focus", "", "regular expression that the names of the specs match")
	return cmd
}

func newVMPackagesCommand(o *options, config *vm.Config) *cobra.Command {
	return &cobra.Command{
		Use:   "packages",
		Short: "Install and remove the deb and the rpm on a node with systemd",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.OutputDir = o.outputDir
			config.Command = []string{"bin/packages-e2e.test", "-test.v", "-test.timeout=0", "-throwaway-machine=/output"}
			code, err := vm.Run(cmd.Context(), *config)
			if err != nil {
				return err
			}
			console, err := os.ReadFile(config.Console())
			if err != nil {
				return err
			}
			passed := strings.Count(string(console), "--- PASS: TestInstall/")
			failed := strings.Count(string(console), "--- FAIL: TestInstall/")
			fmt.Fprintf(cmd.OutOrStdout(), "packages on cgroup v2: %d passed, %d failed\n", passed, failed)
			if code != 0 || passed == 0 {
				return fmt.Errorf("the test ended with exit code %d, see %s", code, config.Console())
			}
			return nil
		},
	}
}
