package release

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"kubelet-guard.io/build"
	"kubelet-guard.io/pkg/version"
)

// Release describes a release: what its files are named after, and what they are made from.
type Release struct {
	// Version is that of Kubelet Guard, for example 0.1.0.
	Version string
	// Commit is the commit of this repository, 40 hexadecimal digits.
	Commit string
	// Time is the time of the commit. No file has another one.
	Time time.Time
	// GoVersion is that of the compiler of all binaries, for example go1.26.8.
	GoVersion string
	// KubeVersions are the upstream versions with a guarded kubelet, sorted.
	KubeVersions []string
	// Registry is the registry and path that the images are meant for, for example
	// registry.example/kubelet-guard.
	Registry string
	// URL is the address of the published folder, without a slash in the end.
	URL string
}

// Files of every release. The signatures are added by who publishes it.
const (
	checksumsFile           = "SHA256SUMS"
	checksumsSignatureFile  = "SHA256SUMS.sigstore.json"
	provenanceFile          = "provenance.json"
	provenanceSignatureFile = "provenance.sigstore.json"
	notesFile               = "release-notes.md"
	// krewFile is named after the plugin, as krew requires.
	krewFile = "guard.yaml"
)

// Program is the name of a program of the release.
type Program string

// The programs.
const (
	Kubelet   Program = "kubelet"
	Webhook   Program = "guard-webhook"
	Installer Program = "guard-installer"
	Unit      Program = "kubelet-guard-unit"
	Plugin    Program = "kubectl-guard"
	Etcd      Program = "guard-etcd"
)

// sources are the packages of the programs: of the kubelet in Kubernetes' module, of the
// others in this one.
var sources = map[Program]string{
	Kubelet:   "k8s.io/kubernetes/cmd/kubelet",
	Webhook:   build.ModulePath + "/cmd/guard-webhook",
	Installer: build.ModulePath + "/cmd/guard-installer",
	Unit:      build.ModulePath + "/cmd/guard-installer/kubelet-guard-unit",
	Plugin:    build.ModulePath + "/cmd/kubectl-guard",
	Etcd:      build.ModulePath + "/cmd/guard-etcd",
}

// architectures are those of the nodes.
var architectures = []string{"amd64", "arm64"}

// pluginPlatforms are the machines that kubectl runs on.
var pluginPlatforms = []Platform{
	{"darwin", "amd64"}, {"darwin", "arm64"}, {"linux", "amd64"}, {"linux", "arm64"}, {"windows", "amd64"},
}

// Platform is an operating system and an architecture, by their names in Go.
type Platform struct{ OS, Arch string }

// Binary is one program for one platform. Its content is the same wherever it is in the folder.
type Binary struct {
	Program Program
	// Version is the release's, or that of the guarded kubelet: 0.1.0 or v1.36.3+guard.0.1.0.
	Version string
	Platform
}

// Name is the name of the binary's file, also where the folder has it in an archive only:
// kubelet-v1.36.3+guard.0.1.0-linux-amd64.
func (b Binary) Name() string {
	return fmt.Sprintf("%s-%s-%s-%s", b.Program, b.Version, b.OS, b.Arch)
}

// sbomFile is the bill of materials of a binary.
func (b Binary) sbomFile() string { return b.Name() + ".cdx.json" }

// kubelet is the guarded kubelet of an upstream version.
func (r Release) kubelet(kube, arch string) Binary {
	return Binary{Kubelet, r.guarded(kube), Platform{"linux", arch}}
}

// own is a program of this repository.
func (r Release) own(p Program, on Platform) Binary { return Binary{p, r.Version, on} }

// guarded is the version of the guarded kubelet of an upstream version.
func (r Release) guarded(kube string) string { return kube + "+guard." + r.Version }

// reported is a text that a binary contains, and prints with --version.
func (r Release) reported(b Binary) string {
	if b.Program == Kubelet {
		return b.Version
	}
	return version.Release(r.Version, r.Commit)
}

// Binaries are all binaries of the release.
func (r Release) Binaries() []Binary {
	var all []Binary
	for _, kube := range r.KubeVersions {
		for _, arch := range architectures {
			all = append(all, r.kubelet(kube, arch))
		}
	}
	for _, p := range []Program{Webhook, Installer, Unit, Etcd} {
		for _, arch := range architectures {
			all = append(all, r.own(p, Platform{"linux", arch}))
		}
	}
	for _, platform := range pluginPlatforms {
		all = append(all, r.own(Plugin, platform))
	}
	return all
}

// Files are the names of all files of the release, sorted, without checksums and signatures.
func (r Release) Files() []string {
	files := []string{provenanceFile, notesFile, krewFile}
	for _, b := range r.Binaries() {
		files = append(files, b.sbomFile())
		switch b.Program {
		case Kubelet:
			files = append(files, b.Name())
		case Plugin, Etcd:
			files = append(files, archiveFile(b))
		}
	}
	for _, p := range r.packages() {
		files = append(files, p.file)
	}
	for _, i := range r.images() {
		files = append(files, i.file)
	}
	for _, m := range overlays {
		files = append(files, m.file)
	}
	slices.Sort(files)
	return files
}

var releaseVersion = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+([-.][0-9A-Za-z.-]+)?$`)

// validate refuses what could not be named. Verify reads it from a folder that anyone may have
// made, and versions become names of files.
func (r Release) validate() error {
	switch {
	case !releaseVersion.MatchString(r.Version):
		return fmt.Errorf("release %q is not a version such as 0.1.0", r.Version)
	case !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(r.Commit):
		return fmt.Errorf("commit %q is not the full hash of a commit", r.Commit)
	case r.Time.IsZero():
		return fmt.Errorf("the time of the commit is missing")
	case r.GoVersion == "":
		return fmt.Errorf("the version of Go is missing")
	case len(r.KubeVersions) == 0:
		return fmt.Errorf("no Kubernetes version")
	case !slices.IsSortedFunc(r.KubeVersions, semver.Compare):
		return fmt.Errorf("the versions of Kubernetes are not sorted: %v", r.KubeVersions)
	case len(slices.Compact(slices.Clone(r.KubeVersions))) < len(r.KubeVersions):
		return fmt.Errorf("a version of Kubernetes is there twice: %v", r.KubeVersions)
	case r.Registry == "" || strings.HasSuffix(r.Registry, "/"):
		return fmt.Errorf("registry %q is not one such as registry.example/kubelet-guard", r.Registry)
	case !strings.HasPrefix(r.URL, "https://") || strings.HasSuffix(r.URL, "/"):
		return fmt.Errorf("address %q is not one such as https://example.com/releases/0.1.0", r.URL)
	}
	for _, kube := range r.KubeVersions {
		if !semver.IsValid(kube) || path.Base(kube) != kube {
			return fmt.Errorf("version %q of Kubernetes is not one such as v1.36.3", kube)
		}
	}
	return nil
}
