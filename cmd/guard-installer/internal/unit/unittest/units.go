// Package unittest has units of kubelets for tests, with what is to become of them.
package unittest

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

//go:embed testdata/units
var units embed.FS

const folder = "testdata/units"

// Unit is a kubelet.service with its drop-ins, and the verdict on it.
type Unit struct {
	Name string `json:"name"`
	// Base is a unit whose files this one has as well; those of the same name replace them.
	Base string `json:"base"`
	// Script is a file of the unit that is a script; all others are programs.
	Script string `json:"script"`
	// Refused has parts of what the installer and the package say, and Installer of what
	// the installer says where it differs. Empty: the kubelet is exchanged.
	Refused   []string `json:"refused"`
	Installer []string `json:"installer"`
	// Prefix, Arguments and Needs are those of the command that is put into place.
	Prefix    string   `json:"prefix"`
	Arguments string   `json:"arguments"`
	Needs     []string `json:"needs"`
}

// Units returns all units.
func Units(t *testing.T) []Unit {
	t.Helper()
	data, err := units.ReadFile(folder + "/verdicts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []Unit
	if err := yaml.UnmarshalStrict(data, &all); err != nil {
		t.Fatal(err)
	}
	entries, err := units.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(all)+1 {
		t.Fatalf("%d units have a verdict, %d files and folders are there", len(all), len(entries))
	}
	return all
}

// Install writes the unit into the root of a node.
func (u Unit) Install(t *testing.T, root string) {
	t.Helper()
	for _, name := range []string{u.Base, u.Name} {
		if name == "" {
			continue
		}
		top := folder + "/" + name
		err := fs.WalkDir(units, top, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			data, err := units.ReadFile(name)
			if err != nil {
				return err
			}
			target := filepath.Join(root, strings.TrimPrefix(name, top))
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			return os.WriteFile(target, data, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
