package kind

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kubelet-guard.io/node-e2e/images"
)

// maxLinks bounds the symbolic links on the way to a file, as the kernel does.
const maxLinks = 40

// debianFiles collects programs of a Debian tree with all that they need to run: the
// links on the way to them, the loader, and the libraries, which the tree may have in
// any folder of Debian's loader.
type debianFiles struct {
	root    string
	folders []string
	files   map[string]images.File
}

func newDebianFiles(root string) *debianFiles {
	d := &debianFiles{root: root, files: map[string]images.File{}}
	for _, pattern := range []string{"lib/*-linux-gnu", "usr/lib/*-linux-gnu", "lib64", "lib", "usr/lib"} {
		// The pattern is well formed.
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, folder := range found {
			d.folders = append(d.folders, "/"+strings.TrimPrefix(strings.TrimPrefix(folder, root), "/"))
		}
	}
	return d
}

// list are the collected files by path.
func (d *debianFiles) list() []images.File {
	var list []images.File
	for _, f := range d.files {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b images.File) int { return strings.Compare(a.Path, b.Path) })
	return list
}

// add collects a program or library, by its path in the tree, with what it needs.
func (d *debianFiles) add(name string) error {
	file, err := d.resolve(name)
	if err != nil {
		return err
	}
	if _, ok := d.files[file.Path]; ok {
		return nil
	}
	d.files[file.Path] = file
	needs, err := needsOf(file.Source)
	if err != nil {
		return err
	}
	for _, need := range needs {
		found := need
		if !path.IsAbs(need) {
			if found, err = d.find(need); err != nil {
				return fmt.Errorf("%s needs %w", name, err)
			}
		}
		if err := d.add(found); err != nil {
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	return nil
}

func (d *debianFiles) find(library string) (string, error) {
	for _, folder := range d.folders {
		if _, err := os.Lstat(filepath.Join(d.root, folder, library)); err == nil {
			return path.Join(folder, library), nil
		}
	}
	return "", fmt.Errorf("%s, which is in none of %s of %s", library, strings.Join(d.folders, " "), d.root)
}

// resolve finds the regular file that a path leads to and collects the links on the
// way. Absolute links are meant in the tree.
func (d *debianFiles) resolve(name string) (images.File, error) {
	done, left := "/", strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	for links := 0; len(left) > 0; {
		here := path.Join(done, left[0])
		left = left[1:]
		info, err := os.Lstat(filepath.Join(d.root, here))
		if err != nil {
			return images.File{}, err
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return images.File{}, fmt.Errorf("%s: too many links", name)
			}
			target, err := os.Readlink(filepath.Join(d.root, here))
			if err != nil {
				return images.File{}, err
			}
			d.files[here] = images.File{Path: here, Link: target}
			if path.IsAbs(target) {
				done = "/"
			}
			left = append(strings.Split(strings.Trim(target, "/"), "/"), left...)
		case len(left) > 0:
			done = here
		case info.Mode().IsRegular():
			return images.File{Path: here, Source: filepath.Join(d.root, here), Mode: info.Mode().Perm()}, nil
		}
	}
	return images.File{}, fmt.Errorf("%s in %s is not a file", name, d.root)
}

// needsOf are the names of the libraries that a program or library needs, and the
// path of its loader. What is not in ELF form needs nothing.
func needsOf(file string) ([]string, error) {
	f, err := elf.Open(file)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needs, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		needs = append(needs, strings.TrimRight(string(loader), "\x00"))
	}
	return needs, nil
}
