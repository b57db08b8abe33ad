package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	for i, line := range strings.Split(string(data), "\n") {
		name := strings.TrimSpace(line)
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if name != filepath.Base(name) || !strings.HasSuffix(name, ".patch") {
			return s, fmt.Errorf("%s:%d: %q is not the name of a .patch file in this directory", file, i+1, name)
		}
		if s.has(name) {
			return s, fmt.Errorf("%s:%d: %s is listed twice", file, i+1, name)
		}
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
	var out []string
	for _, f := range files {
		if name := filepath.Base(f); !s.has(name) {
			out = append(out, name)
		}
	}
	return out, err
}

// has reports whether a patch is in the series.
func (s Series) has(name string) bool {
	return slices.ContainsFunc(s.Patches, func(p Patch) bool { return p.Name == name })
}

// write makes the directory hold exactly this series. It returns the names of the
// files that it wrote or removed.
func (s Series) write() (changed []string, err error) {
	names := ""
	write := func(name string, data []byte) {
		wrote, writeErr := writeFile(filepath.Join(s.Dir, name), data)
		err = errors.Join(err, writeErr)
		if wrote {
			changed = append(changed, name)
		}
	}
	for _, p := range s.Patches {
		write(p.Name, p.Data)
		names += p.Name + "\n"
	}
	write("series", []byte(names))
	// Last, so that an interrupted run leaves a file too many and never one too few.
	gone, listErr := s.Unlisted()
	if err = errors.Join(err, listErr); err != nil {
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
