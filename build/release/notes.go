package release

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeNotes writes the release notes: the release's section of the changelog, and before it
// what no release has yet, if there is any.
func (r Release) writeNotes(dir, changelog string) error {
	data, err := os.ReadFile(changelog)
	if err != nil {
		return err
	}
	sections, err := changelogSections(string(data))
	if err != nil {
		return fmt.Errorf("CHANGELOG.md: %w", err)
	}
	changes, there := sections[r.Version]
	if !there {
		return fmt.Errorf("CHANGELOG.md: no section [%s]", r.Version)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# Kubelet Guard %s\n\n", r.Version)
	var kubelets []string
	for _, kube := range r.KubeVersions {
		kubelets = append(kubelets, r.guarded(kube))
	}
	fmt.Fprintf(&text, "Guarded kubelets: %s. How to check and install them is in docs/releases.md.\n\n", strings.Join(kubelets, ", "))
	if next := sections["Unreleased"]; next != "" {
		fmt.Fprintf(&text, "## Changes after %s, in no release yet\n\n%s\n\n## %s\n\n", r.Version, next, r.Version)
	}
	fmt.Fprintf(&text, "%s\n", changes)
	return os.WriteFile(filepath.Join(dir, notesFile), []byte(text.String()), 0o644)
}

// changelogSections returns the text of each release, by the name in brackets.
func changelogSections(text string) (map[string]string, error) {
	sections := map[string]string{}
	name := ""
	for line := range strings.Lines(text) {
		if rest, heading := strings.CutPrefix(line, "## ["); heading {
			before, _, closed := strings.Cut(rest, "]")
			if !closed {
				return nil, fmt.Errorf("no closing bracket: %q", line)
			}
			if _, twice := sections[before]; twice {
				return nil, fmt.Errorf("section [%s] is there twice", before)
			}
			name, sections[before] = before, ""
			continue
		}
		if name != "" {
			sections[name] += line
		}
	}
	for name, section := range sections {
		sections[name] = strings.TrimSpace(section)
	}
	if len(sections) == 0 {
		return nil, errors.New("no sections")
	}
	return sections, nil
}

// checkNotes looks for the version in the notes.
func checkNotes(dir string, r Release) error {
	data, err := os.ReadFile(filepath.Join(dir, notesFile))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(data), "# Kubelet Guard "+r.Version+"\n") {
		return fmt.Errorf("%s: not those of release %s", notesFile, r.Version)
	}
	return nil
}
