// Command guard-docs writes what the code knows best: the pages of metrics, the text between the
// markers in docs/configuration.md and in the pages of the webhook's rules (the rest is written by
// hand), the dashboard, and the alerts as an object of the Prometheus operator.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

//go:generate go run . -root ../..

func main() {
	root := flag.String("root", ".", "root folder of the repository")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, "guard-docs:", err)
		os.Exit(1)
	}
}

// run writes the files that are not what generate returns.
func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		old, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if content := files[path]; string(old) != content {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				return err
			}
			fmt.Println("wrote", path)
		}
	}
	return nil
}

// generate returns the content of each file by its path.
func generate(root string) (map[string]string, error) {
	files := map[string]string{}
	for _, file := range []struct {
		path  string
		write func() (string, error)
	}{
		{metricsPath, metricsPage},
		{webhookMetricsPath, webhookMetricsPage},
		{dashboardPath, dashboardJSON},
		{prometheusRulePath, func() (string, error) { return prometheusRule(root) }},
	} {
		text, err := file.write()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.path, err)
		}
		files[filepath.Join(root, file.path)] = text
	}
	path := filepath.Join(root, configurationPath)
	page, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	source, err := readSource(filepath.Join(root, guardPackage))
	if err != nil {
		return nil, err
	}
	configuration, err := source.configurationPage(string(page))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	files[path] = configuration
	for _, rule := range specifiedRules() {
		path := filepath.Join(root, rulePages, string(rule)+".md")
		page, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if files[path], err = rulePage(root, rule, string(page)); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return files, nil
}
