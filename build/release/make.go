package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"kubelet-guard.io/build"
	"kubelet-guard.io/pkg/version"
)

// Maker makes the folder of a release.
type Maker struct {
	// Repo is the checkout. It must be that of a commit, without changes.
	Repo build.Repo
	// Upstreams are the sources of the kubelets, oldest first.
	Upstreams []build.Upstream
	// Registry and URL are those of Release.
	Registry, URL string
	// Builder is the address of who makes the folder, for the provenance statement.
	Builder string
}

// Make builds everything and writes it to dir, which must not exist, be empty, or be the folder
// of a release, which is replaced. Progress is written to out.
func (m Maker) Make(ctx context.Context, dir string, out io.Writer) error {
	if err := mayReplace(dir); err != nil {
		return err
	}
	r, err := m.release(ctx)
	if err != nil {
		return err
	}
	in, err := m.build(ctx, r, out)
	if err != nil {
		return err
	}
	if err := m.unchanged(ctx, r); err != nil {
		return err
	}
	return replace(dir, func(tmp string) error {
		start := time.Now()
		if err := r.assemble(ctx, tmp, in); err != nil {
			return err
		}
		fmt.Fprintf(out, "The folder is assembled (%.0f s)\n", time.Since(start).Seconds())
		return Verify(ctx, tmp, "", io.Discard)
	})
}

// release describes the release that is made from the checkout.
func (m Maker) release(ctx context.Context) (Release, error) {
	changes, err := gitOutput(ctx, m.Repo.Root, "status", "--porcelain")
	if err != nil {
		return Release{}, err
	}
	if changes != "" {
		return Release{}, fmt.Errorf("a release is made from a commit, and the checkout has changes:\n%s", changes)
	}
	commit, err := gitOutput(ctx, m.Repo.Root, "log", "-1", "--format=%H %ct")
	if err != nil {
		return Release{}, err
	}
	hash, seconds, _ := strings.Cut(commit, " ")
	epoch, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return Release{}, fmt.Errorf("the time of commit %s: %w", hash, err)
	}
	r := Release{
		Version: build.Release, Commit: hash, Time: time.Unix(epoch, 0).UTC(), GoVersion: runtime.Version(), Registry: m.Registry, URL: m.URL,
	}
	for _, u := range m.Upstreams {
		r.KubeVersions = append(r.KubeVersions, u.Version)
	}
	return r, r.validate()
}

// unchanged fails when the checkout is no longer that of the release: the builds before take long,
// and read its files one after the other.
func (m Maker) unchanged(ctx context.Context, r Release) error {
	now, err := m.release(ctx)
	if err == nil && now.Commit != r.Commit {
		err = fmt.Errorf("its commit is %s now", now.Commit)
	}
	if err != nil {
		return fmt.Errorf("the checkout of commit %s changed during the build: %w", r.Commit, err)
	}
	return nil
}

func gitOutput(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	var problems strings.Builder
	cmd.Stderr = &problems
	data, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], dir, err, problems.String())
	}
	return strings.TrimSpace(string(data)), nil
}

// inputs are what a folder is assembled from.
type inputs struct {
	// root is the checkout.
	root string
	// binaries are the files of the binaries.
	binaries map[Binary]string
	// packages is the folder of each package.
	packages map[string]string
	sbom     sbomTool
	builder  builder
}

// build makes binaries and packages, and the tool for bills of materials.
func (m Maker) build(ctx context.Context, r Release, out io.Writer) (inputs, error) {
	in := inputs{
		root: m.Repo.Root, binaries: map[Binary]string{}, packages: map[string]string{},
		builder: builder{id: m.Builder, upstreams: m.Upstreams},
	}
	for _, u := range m.Upstreams {
		for _, arch := range architectures {
			if err := m.Repo.Build(ctx, u, arch, []build.Binary{build.Kubelet}, out); err != nil {
				return inputs{}, err
			}
			in.binaries[r.kubelet(u.Version, arch)] = m.Repo.ResultFile(u, arch, build.Kubelet)
		}
	}
	variables := map[string]string{version.Variable: version.Release(r.Version, r.Commit)}
	work := filepath.Join(m.Repo.Root, "_output", "release-work")
	for _, b := range r.Binaries() {
		if b.Program == Kubelet {
			continue
		}
		file := filepath.Join(work, b.OS+"-"+b.Arch, programFile(b))
		if err := m.Repo.BuildProgram(ctx, b.OS, b.Arch, variables, sources[b.Program], file, out); err != nil {
			return inputs{}, err
		}
		in.binaries[b] = file
	}
	for _, u := range m.Upstreams {
		folder := filepath.Join(work, "packages", u.Version)
		if err := m.pack(ctx, r, u, in.binaries, folder, out); err != nil {
			return inputs{}, err
		}
		in.packages[u.Version] = folder
	}
	tool := filepath.Join(m.Repo.Root, "_output", "bin", "cyclonedx-gomod")
	if err := m.Repo.BuildTool(ctx, "cyclonedx-gomod", "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod", tool, out); err != nil {
		return inputs{}, err
	}
	in.sbom = cyclonedxGomod(tool)
	return in, nil
}

// pack makes deb and rpm of one upstream version with the script of make packages.
func (m Maker) pack(ctx context.Context, r Release, u build.Upstream, files map[Binary]string, folder string, out io.Writer) error {
	start := time.Now()
	cmd := exec.CommandContext(ctx, filepath.Join(m.Repo.Root, "scripts", "packages.sh"), append([]string{r.guarded(u.Version)}, architectures...)...)
	cmd.Dir = m.Repo.Root
	cmd.Env = append(os.Environ(), "PACKAGES="+folder, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.Time.Unix()))
	for _, arch := range architectures {
		unit := files[r.own(Unit, Platform{"linux", arch})]
		cmd.Env = append(cmd.Env, "KUBELET_GUARD_UNIT_"+strings.ToUpper(arch)+"="+unit)
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("scripts/packages.sh %s: %w", r.guarded(u.Version), err)
	}
	fmt.Fprintf(out, "Packages of %s (%.0f s)\n", u.Version, time.Since(start).Seconds())
	return nil
}

// assemble writes all files of the release but the signatures.
func (r Release) assemble(ctx context.Context, dir string, in inputs) error {
	for _, b := range r.Binaries() {
		file, there := in.binaries[b]
		if !there {
			return fmt.Errorf("%s was not built", b.Name())
		}
		data, err := in.sbom(ctx, b, file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, b.sbomFile()), data, 0o644); err != nil {
			return err
		}
		switch b.Program {
		case Kubelet:
			err = copyTo(filepath.Join(dir, b.Name()), file, 0o755)
		case Plugin, Etcd:
			err = r.writeArchive(dir, b, file, in.root)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range r.packages() {
		kube, _, _ := strings.Cut(p.kubelet.Version, "+")
		if err := copyTo(filepath.Join(dir, p.file), filepath.Join(in.packages[kube], p.file), 0o644); err != nil {
			return err
		}
	}
	for _, i := range r.images() {
		if err := r.writeImage(dir, i, in.binaries); err != nil {
			return fmt.Errorf("%s: %w", i.file, err)
		}
	}
	if err := errors.Join(
		r.writeManifests(dir, filepath.Join(in.root, "manifests")),
		r.writeKrew(dir),
		r.writeNotes(dir, filepath.Join(in.root, "CHANGELOG.md")),
	); err != nil {
		return err
	}
	// The statement is about all others, the checksums are of the statement, too.
	files := r.Files()
	others := slices.DeleteFunc(slices.Clone(files), func(name string) bool { return name == provenanceFile })
	if err := r.writeProvenance(dir, others, in.builder); err != nil {
		return err
	}
	return writeChecksums(dir, files)
}

func copyTo(to, from string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// mayReplace fails for a folder with something that is not a release.
func mayReplace(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, checksumsFile)); err != nil {
		return fmt.Errorf("%s is not empty and not the folder of a release; name another one", dir)
	}
	return nil
}

// replace makes a folder under another name, and moves it to its place when it is complete.
func replace(dir string, fill func(tmp string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".release-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}
