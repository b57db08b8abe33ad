package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/modfile"
)

// PinGoMod turns the go.mod of the archive into one that builds outside upstream's
// repository: the replacements by staging directories go, and the v0.0.0
// requirements that relied on them get the published version.
func PinGoMod(upstream []byte, stagingVersion string) ([]byte, error) {
	f, err := modfile.Parse("go.mod", upstream, nil)
	if err != nil {
		return nil, err
	}
	var staged []string
	for _, r := range f.Replace {
		if r.New.Version == "" && strings.HasPrefix(r.New.Path, "./staging/") {
			staged = append(staged, r.Old.Path)
		}
	}
	if len(staged) == 0 {
		return nil, fmt.Errorf("go.mod: no replace directive points to ./staging/; this is not upstream's go.mod")
	}
	required := map[string]string{}
	for _, r := range f.Require {
		required[r.Mod.Path] = r.Mod.Version
	}
	for _, path := range staged {
		if err := f.DropReplace(path, ""); err != nil {
			return nil, err
		}
		if required[path] == "v0.0.0" {
			if err := f.AddRequire(path, stagingVersion); err != nil {
				return nil, err
			}
			required[path] = stagingVersion
		}
	}
	for path, version := range required {
		if version == "v0.0.0" {
			return nil, fmt.Errorf("go.mod: %s is required at v0.0.0 and not replaced by a staging directory", path)
		}
	}
	f.Cleanup()
	return f.Format()
}

// pinnedPackages are the packages whose dependencies, tests included, go.sum must
// cover: what is built, and what the upstream tests run.
var pinnedPackages = []string{
	"./cmd/kubelet/...", "./pkg/kubelet/...",
	"./cmd/kube-apiserver", "./cmd/kube-controller-manager", "./cmd/kube-scheduler", "./cmd/kubectl",
}

// Pin writes go.mod and go.sum of the patch directory from the archive of u.
func (r Repo) Pin(ctx context.Context, u Upstream, out io.Writer) error {
	src, err := u.Fetch(ctx)
	if err != nil {
		return err
	}
	if err := u.VerifyDir(src); err != nil {
		return err
	}
	modules, err := r.resolveModules(ctx, u, src, out)
	if err != nil {
		return err
	}
	for name, data := range modules {
		file := filepath.Join(r.patchDir(u), name)
		changed, err := writeFile(file, data)
		if err != nil {
			return err
		}
		state := "unchanged"
		if changed {
			state = "written"
		}
		fmt.Fprintf(out, "%s: %s\n", r.rel(file), state)
	}
	return nil
}

// resolveModules returns the module files with which an archive builds. It gets the sums that upstream's go.sum lacks from the module proxy:
// upstream's checkout contains the staging modules.
func (r Repo) resolveModules(ctx context.Context, u Upstream, src string, out io.Writer) (map[string][]byte, error) {
	dir := r.path("_output", "src", u.Version, "pin")
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := copyTree(src, dir); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(src, "go.mod"))
	if err != nil {
		return nil, err
	}
	data, err = PinGoMod(data, u.StagingVersion)
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", u.Module, u.Version, err)
	}
	if _, err := writeFile(filepath.Join(dir, "go.mod"), data); err != nil {
		return nil, err
	}
	for _, arch := range []string{"amd64", "arm64"} {
		fmt.Fprintf(out, "Resolving the dependencies of %s for linux/%s\n", u.Version, arch)
		args := append([]string{"list", "-mod=mod", "-deps", "-test", "-tags", buildTags}, pinnedPackages...)
		cmd := goCommand(ctx, dir, arch, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("go list in %s: %w\n%s", dir, err, stderr.String())
		}
	}
	modules := map[string][]byte{}
	for _, name := range moduleFiles {
		if modules[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return modules, nil
}
