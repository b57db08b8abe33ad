package framework

import (
	"fmt"
	"os"
	"path/filepath"
)

// Folders makes the values of the flags -output and -manifests absolute, since parts of
// a cluster that get them run in folders of their own.
func Folders(output, manifests string) (absoluteOutput, absoluteManifests string, err error) {
	if absoluteOutput, err = filepath.Abs(output); err != nil {
		return "", "", fmt.Errorf("-output: %w", err)
	}
	if absoluteManifests, err = filepath.Abs(manifests); err != nil {
		return "", "", fmt.Errorf("-manifests: %w", err)
	}
	return absoluteOutput, absoluteManifests, nil
}

// Prepare checks that the files and folders that a run needs are there, so that a
// missing one is reported before a cluster or a spec starts, and makes the folder for
// artifacts, which is below that of -output. The target is what builds all of them.
func Prepare(artifacts, target string, needed ...string) error {
	for _, path := range needed {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("not built (%s builds all): %w", target, err)
		}
	}
	if err := os.MkdirAll(artifacts, 0o755); err != nil {
		return fmt.Errorf("-output: %w", err)
	}
	return nil
}
