package build

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
)

const (
	// ModulePath is the module path of this repository.
	ModulePath = "kubelet-guard.io"

	// GuardDir is the place of the guard package, the same one in this repository
	// and in a Kubernetes tree.
	GuardDir = "pkg/kubelet/guard"

	// guardTestDir is what in-tree tests of several packages share. It needs the
	// kubelet's own types, so it lies with those tests and not in the guard package.
	guardTestDir = GuardDir + "/guardtest"
)

// testOnly reports whether a file of a Kubernetes tree is part of no program.
func testOnly(name string) bool {
	return strings.HasSuffix(name, "_test.go") || strings.Contains("/"+name, "/testdata/") || strings.HasPrefix(name, guardTestDir+"/")
}

// inGuard reports whether a file of a Kubernetes tree is one of the guard package.
func inGuard(name string) bool {
	return strings.HasPrefix(name, GuardDir+"/") && !strings.HasPrefix(name, guardTestDir+"/")
}

// Repo is a checkout of this repository. All methods take their paths from it, so
// that two checkouts do not disturb each other.
type Repo struct {
	// Root is the absolute path of the directory that holds go.mod.
	Root string
	// Cache is the folder of trees and programs that checkouts share. Empty means none: all
	// is made inside the checkout, and results of tests are not reused.
	Cache string
}

// FindRepo returns the checkout that dir is in.
func FindRepo(dir string) (Repo, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Repo{}, err
	}
	for d := dir; ; d = filepath.Dir(d) {
		data, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && modfile.ModulePath(data) == ModulePath {
			cache, err := cacheDir()
			return Repo{Root: d, Cache: cache}, err
		}
		if d == filepath.Dir(d) {
			return Repo{}, fmt.Errorf("no go.mod of module %s in %s or above it; run this inside a checkout of Kubelet Guard", ModulePath, dir)
		}
	}
}

func (r Repo) path(elem ...string) string {
	return filepath.Join(append([]string{r.Root}, elem...)...)
}

// patchDir is where the patches for a minor version live.
func (r Repo) patchDir(u Upstream) string { return r.path("patches", u.Minor()) }

// outDir holds everything that is built for one upstream version.
func (r Repo) outDir(u Upstream) string { return r.path("_output", u.Version) }

// rel shortens a path for messages.
func (r Repo) rel(path string) string {
	if rel, err := filepath.Rel(r.Root, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}

// addedFiles returns what a guarded tree has besides upstream's files and the
// patches: the guard package and the in-tree hook tests. Keys are slash-separated
// paths in the Kubernetes tree.
func (r Repo) addedFiles(u Upstream) (map[string][]byte, error) {
	files := map[string][]byte{}
	if err := readTree(r.path(filepath.FromSlash(GuardDir)), GuardDir, files); err != nil {
		return nil, err
	}
	for name, data := range files {
		// The same bytes must compile here and in the Kubernetes tree, where this
		// module does not exist.
		if strings.HasSuffix(name, ".go") && strings.Contains(string(data), `"`+ModulePath+`/pkg/`) {
			return nil, fmt.Errorf("%s: imports a package of %s; the guard package is copied into the Kubernetes tree, where only published modules resolve", name, ModulePath)
		}
	}
	tests, err := r.hookTests(u)
	if err != nil {
		return nil, err
	}
	for name, data := range tests {
		if !testOnly(name) {
			return nil, fmt.Errorf("%s: only _test.go files, testdata and %s belong there; code goes into the guard package or a patch", r.rel(r.hookTest(u, name)), guardTestDir)
		}
		if inGuard(name) {
			return nil, fmt.Errorf("%s: the guard package's own tests belong in %s", r.rel(r.hookTest(u, name)), GuardDir)
		}
		files[name] = data
	}
	return files, nil
}

// hookTestDirs are the folders of the in-tree tests: those of all minor versions, and those
// of one, which has what differs between versions.
func (r Repo) hookTestDirs(u Upstream) (all, own string) {
	return r.path("patches", "tests"), filepath.Join(r.patchDir(u), "tests")
}

// hookTests returns the in-tree tests for a version. Keys are slash-separated paths in the
// Kubernetes tree. A file in both folders is an error.
func (r Repo) hookTests(u Upstream) (map[string][]byte, error) {
	all, own := r.hookTestDirs(u)
	tests, ownTests := map[string][]byte{}, map[string][]byte{}
	if err := errors.Join(readTree(all, "", tests), readTree(own, "", ownTests)); err != nil {
		return nil, err
	}
	for name, data := range ownTests {
		if _, both := tests[name]; both {
			return nil, fmt.Errorf("%s/%s: %s has the same file; keep one of them", r.rel(own), name, r.rel(all))
		}
		tests[name] = data
	}
	return tests, nil
}

// hookTest returns where the in-tree test of a name is, or belongs: with the tests of all
// versions, unless those of this one have it.
func (r Repo) hookTest(u Upstream, name string) string {
	all, own := r.hookTestDirs(u)
	name = filepath.FromSlash(name)
	if _, err := os.Stat(filepath.Join(own, name)); err == nil {
		return filepath.Join(own, name)
	}
	return filepath.Join(all, name)
}

// readTree adds the regular files below dir to files, under prefix. A directory
// that does not exist has no files.
func readTree(dir, prefix string, files map[string][]byte) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || ignoredName(d.Name()) {
			return nil
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s: not a regular file", path)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if prefix != "" {
			name = prefix + "/" + name
		}
		files[name] = data
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ignoredName reports editor leftovers, which must not change what is built.
func ignoredName(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") ||
		strings.HasSuffix(name, "~") || strings.HasSuffix(name, ".orig") || strings.HasSuffix(name, ".rej")
}

// writeFile replaces a file in one step, and leaves it as it is, time stamp included, when it
// has that content: the go command then need not hash it again.
func writeFile(path string, data []byte) (changed bool, err error) {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return false, nil
	}
	return true, replaceFile(path, func(tmp string) error { return os.WriteFile(tmp, data, 0o644) })
}

// replaceFile makes a file or replaces it in one step. It is written at a path next to it
// that does not exist.
func replaceFile(path string, write func(tmp string) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tmp := filepath.Join(dir, filepath.Base(path))
	if err := write(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// copyFile copies a file; mode is that of the copy.
func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
