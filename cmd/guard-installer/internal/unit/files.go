package unit

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// searchPath is where systemd finds units of the system, the preferred ones first.
var searchPath = []string{
	"/etc/systemd/system.control",
	"/run/systemd/system.control",
	"/run/systemd/transient",
	"/run/systemd/generator.early",
	"/etc/systemd/system",
	"/etc/systemd/system.attached",
	"/run/systemd/system",
	"/run/systemd/system.attached",
	"/run/systemd/generator",
	"/usr/local/lib/systemd/system",
	"/usr/lib/systemd/system",
	"/lib/systemd/system",
	"/run/systemd/generator.late",
}

// Root is a root file system, such as host.Root.
type Root interface {
	Path(name string) string
	Folder(name string) ([]string, error)
}

// ErrNoUnit is the error of Files where there is no such unit.
var ErrNoUnit = errors.New("there is no such unit")

// Files finds the file of a service and its drop-ins in the order in which systemd reads
// them. It reads the disk and needs no systemd, as when an image is made, and it sees
// what systemd will see after its next reload.
func Files(root Root, name string) ([]string, error) {
	var files []string
	for _, dir := range searchPath {
		file := path.Join(dir, name)
		target := root.Path(file)
		info, err := os.Stat(target)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !info.Mode().IsRegular() || info.Size() == 0 {
			return nil, fmt.Errorf("%s: the unit is masked: run systemctl unmask %s", file, name)
		}
		if path.Base(target) != name {
			return nil, fmt.Errorf("%s is another name of %s, which is not supported", file, path.Base(target))
		}
		files = append(files, file)
		break
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: %w", name, ErrNoUnit)
	}
	// Of drop-ins of one name the first counts; they are read in the order of their
	// names.
	found := map[string]string{}
	for _, folder := range []string{name + ".d", path.Ext(name)[1:] + ".d"} {
		for _, dir := range searchPath {
			names, err := root.Folder(path.Join(dir, folder))
			if err != nil {
				return nil, fmt.Errorf("read the folder %s: %w", path.Join(dir, folder), err)
			}
			for _, n := range names {
				if _, ok := found[n]; !ok && strings.HasSuffix(n, ".conf") {
					found[n] = path.Join(dir, folder, n)
				}
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(found)) {
		info, err := os.Stat(root.Path(found[n]))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", found[n], err)
		case info.Mode().IsRegular() && info.Size() > 0:
			files = append(files, found[n])
		case info.IsDir():
			return nil, fmt.Errorf("%s is a folder; a file was expected", found[n])
		}
		// Else a drop-in that is masked.
	}
	return files, nil
}
