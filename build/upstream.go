package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/mod/semver"
	"golang.org/x/mod/sumdb/dirhash"
	"sigs.k8s.io/yaml"
)

// Upstream pins the Kubernetes archive that a patch directory belongs to. It is
// the content of patches/v1.NN/upstream.yaml.
type Upstream struct {
	// Module is the path of the published module.
	Module string `json:"module"`
	// Version is the module version, for example v1.36.3.
	Version string `json:"version"`
	// Sum is the h1 sum of the module's files, as go.sum has it.
	Sum string `json:"sum"`
	// GoModSum is the h1 sum of the module's go.mod file alone.
	GoModSum string `json:"goModSum"`
	// StagingVersion is the published version of the modules that upstream keeps
	// in its own repository, for example v0.36.3.
	StagingVersion string `json:"stagingVersion"`

	// file is where the pin was read, for error messages.
	file string
}

// Minor returns the name of the patch directory, for example v1.36.
func (u Upstream) Minor() string { return semver.MajorMinor(u.Version) }

func (u Upstream) validate() error {
	switch {
	case u.Module == "":
		return fmt.Errorf("%s: module is empty; it must be the path of the Kubernetes module", u.file)
	case !semver.IsValid(u.Version):
		return fmt.Errorf("%s: version %q is not a semantic version such as v1.36.3", u.file, u.Version)
	case !strings.HasPrefix(u.Sum, "h1:"):
		return fmt.Errorf("%s: sum %q is not an h1 sum; take it from go mod download -json", u.file, u.Sum)
	case !strings.HasPrefix(u.GoModSum, "h1:"):
		return fmt.Errorf("%s: goModSum %q is not an h1 sum; take it from go mod download -json", u.file, u.GoModSum)
	case !semver.IsValid(u.StagingVersion):
		return fmt.Errorf("%s: stagingVersion %q is not a semantic version such as v0.36.3", u.file, u.StagingVersion)
	}
	return nil
}

// LoadUpstream reads one upstream.yaml. Unknown and missing fields are errors.
func LoadUpstream(file string) (Upstream, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Upstream{}, err
	}
	u := Upstream{file: file}
	if err := yaml.UnmarshalStrict(data, &u); err != nil {
		return Upstream{}, fmt.Errorf("%s: %w", file, err)
	}
	return u, u.validate()
}

// Supported returns the pins of all patch directories, oldest minor first.
func (r Repo) Supported() ([]Upstream, error) {
	files, err := filepath.Glob(filepath.Join(r.Root, "patches", "v*", "upstream.yaml"))
	if err != nil {
		return nil, err
	}
	var all []Upstream
	for _, file := range files {
		u, err := LoadUpstream(file)
		if err != nil {
			return nil, err
		}
		if dir := filepath.Base(filepath.Dir(file)); dir != u.Minor() {
			return nil, fmt.Errorf("%s: version %s does not belong in directory %s", file, u.Version, dir)
		}
		all = append(all, u)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no upstream.yaml below it; is this the repository root?", filepath.Join(r.Root, "patches"))
	}
	sort.Slice(all, func(i, j int) bool { return semver.Compare(all[i].Version, all[j].Version) < 0 })
	return all, nil
}

// Upstream returns the pin for a version such as v1.36.3, 1.36.3 or 1.36. The
// empty string means that of the minor of KubeVersion. Any other version is an error that
// lists those supported.
func (r Repo) Upstream(version string) (Upstream, error) {
	all, err := r.Supported()
	if err != nil {
		return Upstream{}, err
	}
	if version == "" {
		version = semver.MajorMinor(KubeVersion)
	}
	want := "v" + strings.TrimPrefix(version, "v")
	var versions []string
	for _, u := range all {
		if want == u.Version || want == u.Minor() {
			return u, nil
		}
		versions = append(versions, u.Version)
	}
	return Upstream{}, fmt.Errorf("no patches for Kubernetes version %q; supported: %s", version, strings.Join(versions, ", "))
}

// moduleDownload is the part of `go mod download -json` that is used here.
type moduleDownload struct {
	Dir, Sum, GoModSum, Error string
}

// Fetch downloads the pinned archive into the module cache, unless it is there,
// and returns the directory of its files. It fails when the archive has other sums
// than the pin; the files themselves are checked by VerifyDir.
func (u Upstream) Fetch(ctx context.Context) (string, error) {
	got, err := downloadModule(ctx, u.Module, u.Version)
	if err != nil {
		return "", err
	}
	if got.Sum != u.Sum {
		return "", fmt.Errorf("%s: sum: the archive of %s@%s has %s, the pin wants %s; do not build from it: find out who changed the archive",
			u.file, u.Module, u.Version, got.Sum, u.Sum)
	}
	if got.GoModSum != u.GoModSum {
		return "", fmt.Errorf("%s: goModSum: the go.mod of %s@%s has %s, the pin wants %s; do not build from it: find out who changed the archive",
			u.file, u.Module, u.Version, got.GoModSum, u.GoModSum)
	}
	return got.Dir, nil
}

// VerifyDir hashes the extracted files, because the module cache compares sums
// only once, when it extracts an archive.
func (u Upstream) VerifyDir(dir string) error {
	got, err := dirhash.HashDir(dir, u.Module+"@"+u.Version, dirhash.Hash1)
	if err != nil {
		return fmt.Errorf("hash %s: %w", dir, err)
	}
	if got != u.Sum {
		return fmt.Errorf("%s: sum: the files in %s have %s, the pin wants %s; they were changed after the download: remove the directory, or run go clean -modcache",
			u.file, dir, got, u.Sum)
	}
	return nil
}

func downloadModule(ctx context.Context, module, version string) (moduleDownload, error) {
	cmd := command(ctx, os.TempDir(), "go", "mod", "download", "-json", module+"@"+version)
	// The result must not depend on a go.mod or go.work around the caller.
	cmd.Env = append(os.Environ(), "GO111MODULE=on", "GOWORK=off", "GOFLAGS=-mod=mod")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()
	var got moduleDownload
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		return got, fmt.Errorf("go mod download %s@%s: %w", module, version, errors.Join(runErr, errors.New(strings.TrimSpace(stderr.String()))))
	}
	if got.Error != "" {
		return got, fmt.Errorf("go mod download %s@%s: %s", module, version, got.Error)
	}
	return got, nil
}
