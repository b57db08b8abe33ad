// Command guard-docs writes the parts of docs/ that the guard package knows
// best: docs/metrics.md, and in docs/configuration.md what stands between the
// markers. The rest of docs/configuration.md is written by hand.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
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
	for _, path := range []string{metricsPath, configurationPath} {
		path := filepath.Join(root, path)
		old, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if content := files[path]; string(old) != content {
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
	metrics, err := metricsPage()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metricsPath, err)
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
	return map[string]string{filepath.Join(root, metricsPath): metrics, path: configuration}, nil
}
