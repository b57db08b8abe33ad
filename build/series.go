package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Series is an ordered patch series as it lies in patches/v1.NN.
type Series struct {
	// Dir is the directory of the patches.
	Dir string
	// Patches are in the order in which they apply.
	Patches []Patch
}

// LoadSeries reads the series file of a directory and the patches that it names.
// A missing series file is an empty series: a new minor version starts without
// patches. A named patch that does not exist, or one that is named twice, is an
// error.
func LoadSeries(dir string) (Series, error) {
	s := Series{Dir: dir}
	file := filepath.Join(dir, "series")
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	seen := map[string]bool{}
	for i, line := range strings.Split(string(data), "\n") {
		name := strings.TrimSpace(line)
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if name != filepath.Base(name) || !strings.HasSuffix(name, ".patch") {
			return s, fmt.Errorf("%s:%d: %q is not the name of a .patch file in this directory", file, i+1, name)
		}
		if seen[name] {
			return s, fmt.Errorf("%s:%d: %s is listed twice", file, i+1, name)
		}
		seen[name] = true
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return s, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		p, err := ParsePatch(name, data)
		if err != nil {
			return s, err
		}
		s.Patches = append(s.Patches, p)
	}
	return s, nil
}

// Unlisted returns the patch files in the directory that the series file does not
// name.
func (s Series) Unlisted() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(s.Dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	listed := map[string]bool{}
	for _, p := range s.Patches {
		listed[p.Name] = true
	}
	var out []string
	for _, f := range files {
		if name := filepath.Base(f); !listed[name] {
			out = append(out, name)
		}
	}
	return out, nil
}

// write makes the directory hold exactly this series. It returns the names of the
// files that it wrote or removed.
func (s Series) write() (changed []string, err error) {
	var names strings.Builder
	for _, p := range s.Patches {
		wrote, err := writeFile(filepath.Join(s.Dir, p.Name), p.Data, 0o644)
		if err != nil {
			return changed, err
		}
		if wrote {
			changed = append(changed, p.Name)
		}
		names.WriteString(p.Name + "\n")
	}
	wrote, err := writeFile(filepath.Join(s.Dir, "series"), []byte(names.String()), 0o644)
	if err != nil {
		return changed, err
	}
	if wrote {
		changed = append(changed, "series")
	}
	// Last, so that an interrupted run leaves a file too many and never one too few.
	gone, err := s.Unlisted()
	if err != nil {
		return changed, err
	}
	for _, name := range gone {
		if err := os.Remove(filepath.Join(s.Dir, name)); err != nil {
			return changed, err
		}
		changed = append(changed, name+" (removed)")
	}
	return changed, nil
}

// equal reports whether two series have the same patches, bytes and order.
func (s Series) equal(other Series) bool {
	if len(s.Patches) != len(other.Patches) {
		return false
	}
	for i, p := range s.Patches {
		if p.Name != other.Patches[i].Name || string(p.Data) != string(other.Patches[i].Data) {
			return false
		}
	}
	return true
}
