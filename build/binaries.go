package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// buildTags are those of upstream's own builds, plus the ones that keep test
// helpers and gRPC's tracing out of a binary.
const buildTags = "selinux,notest,grpcnotrace"

// Binary is one program that is built from a prepared tree.
type Binary struct {
	// Name is the file name of the result.
	Name string
	// Package is the package in the Kubernetes tree.
	Package string
	// Tree is the source it is built from.
	Tree Tree
}

// Kubelet is the guarded kubelet.
var Kubelet = Binary{Name: "kubelet", Package: "./cmd/kubelet", Tree: Guarded}

// StockKubelet is the kubelet without the guard, built in the same way: what
// differs between the two is the guard and nothing else.
var StockKubelet = Binary{Name: "kubelet-stock", Package: "./cmd/kubelet", Tree: Stock}

// ControlPlane are the unpatched programs of a control plane, and kubectl.
var ControlPlane = []Binary{
	{Name: "kube-apiserver", Package: "./cmd/kube-apiserver", Tree: Stock},
	{Name: "kube-controller-manager", Package: "./cmd/kube-controller-manager", Tree: Stock},
	{Name: "kube-scheduler", Package: "./cmd/kube-scheduler", Tree: Stock},
	{Name: "kubectl", Package: "./cmd/kubectl", Tree: Stock},
}

// kindBinaries are the unpatched programs that a kind cluster has in addition.
var kindBinaries = []Binary{
	{Name: "kubeadm", Package: "./cmd/kubeadm", Tree: Stock},
	{Name: "kube-proxy", Package: "./cmd/kube-proxy", Tree: Stock},
}

// Build builds programs for linux/goarch; the empty goarch means this machine's.
// Results go to _output/<version>, those for another architecture to
// _output/<version>/linux-<goarch>. The two kubelets of this machine's
// architecture are also linked into _output/bin. Progress is written to out.
func (r Repo) Build(ctx context.Context, u Upstream, goarch string, binaries []Binary, out io.Writer) error {
	dir := r.outDir(u)
	if goarch == "" {
		goarch = runtime.GOARCH
	}
	if goarch != runtime.GOARCH {
		dir = filepath.Join(dir, "linux-"+goarch)
	}
	for _, b := range binaries {
		if err := r.buildOne(ctx, u, goarch, b, filepath.Join(dir, b.Name), out); err != nil {
			return err
		}
	}
	return nil
}

func (r Repo) buildOne(ctx context.Context, u Upstream, goarch string, b Binary, result string, out io.Writer) error {
	tree, release, err := r.hold(ctx, u, b.Tree, out)
	if err != nil {
		return err
	}
	defer release()
	flags, err := r.linkerFlags(u, b.Tree)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := goBuild(ctx, tree, goarch, flags, result, b.Package, out); err != nil {
		return err
	}
	if goarch == runtime.GOARCH && (b == Kubelet || b == StockKubelet) {
		if err := linkInto(result, r.path("_output", "bin", b.Name)); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s: %s (%.0f s)\n", r.rel(result), r.version(u, b.Tree), time.Since(start).Seconds())
	return nil
}

// VerifyReproducible builds programs a second time, from a copy of the tree in
// another directory and with an empty build cache, and compares the bytes with what
// Build left. It takes as long as a first build.
func (r Repo) VerifyReproducible(ctx context.Context, u Upstream, goarch string, binaries []Binary, out io.Writer) error {
	if goarch == "" {
		goarch = runtime.GOARCH
	}
	dir := r.outDir(u)
	if goarch != runtime.GOARCH {
		dir = filepath.Join(dir, "linux-"+goarch)
	}
	elsewhere, err := os.MkdirTemp("", "guard-reproduce-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(elsewhere)
	for _, b := range binaries {
		tree, err := r.Prepare(ctx, u, b.Tree, out)
		if err != nil {
			return err
		}
		copied := filepath.Join(elsewhere, string(b.Tree))
		if err := os.RemoveAll(copied); err != nil {
			return err
		}
		if err := copyTree(ctx, tree, copied); err != nil {
			return err
		}
		flags, err := r.linkerFlags(u, b.Tree)
		if err != nil {
			return err
		}
		result := filepath.Join(elsewhere, b.Name)
		fmt.Fprintf(out, "Building %s again in %s with an empty cache\n", b.Name, copied)
		cmd := goCommand(ctx, copied, goarch, buildArgs(flags, result, b.Package)...)
		cmd.Env = append(cmd.Env, "GOCACHE="+filepath.Join(elsewhere, "cache"))
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go build in %s: %w", copied, err)
		}
		first, err := os.ReadFile(filepath.Join(dir, b.Name))
		if err != nil {
			return err
		}
		second, err := os.ReadFile(result)
		if err != nil {
			return err
		}
		if a, b2 := hexSum(first), hexSum(second); a != b2 {
			return fmt.Errorf("%s is not reproducible: %s has SHA-256 %s, a build elsewhere %s", b.Name, r.rel(filepath.Join(dir, b.Name)), a, b2)
		}
		fmt.Fprintf(out, "%s: the same %d bytes, SHA-256 %s\n", b.Name, len(first), hexSum(first))
	}
	return nil
}

// version returns the version string that programs of a tree report.
func (r Repo) version(u Upstream, t Tree) string {
	if t == Guarded {
		return GuardedVersion(u.Version)
	}
	return u.Version
}

// linkerFlags strip the binary and set its version. The archive has placeholders
// where a git checkout has its commit, and there is no commit to name: the field
// carries the fingerprint of the sources instead, so that two binaries with equal
// version and different sources can be told apart.
func (r Repo) linkerFlags(u Upstream, t Tree) (string, error) {
	source, err := r.sourceFingerprint(u, t)
	if err != nil {
		return "", err
	}
	numbers := strings.Split(strings.TrimPrefix(semver.MajorMinor(u.Version), "v"), ".")
	if len(numbers) != 2 {
		return "", fmt.Errorf("%s: version %q has no minor number", u.file, u.Version)
	}
	flags := []string{"-s", "-w"}
	for _, v := range [][2]string{
		{"gitVersion", r.version(u, t)},
		{"gitMajor", numbers[0]},
		{"gitMinor", numbers[1]},
		{"gitCommit", source[:40]},
		{"gitTreeState", "archive"},
		{"buildDate", "1970-01-01T00:00:00Z"},
	} {
		for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
			flags = append(flags, "-X", pkg+"."+v[0]+"="+v[1])
		}
	}
	return strings.Join(flags, " "), nil
}

// sourceFingerprint identifies the sources of a tree's programs. Tests are not
// among them.
func (r Repo) sourceFingerprint(u Upstream, t Tree) (string, error) {
	base, err := r.baseFingerprint(u)
	if err != nil || t == Stock {
		return base, err
	}
	series, err := LoadSeries(r.patchDir(u))
	if err != nil {
		return "", err
	}
	added, err := r.addedFiles(u)
	if err != nil {
		return "", err
	}
	for name := range added {
		if testOnly(name) {
			delete(added, name)
		}
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(base+overlayFingerprint(series, added)))), nil
}

// goBuild builds one package. The go command writes a new file and leaves a result
// that is up to date alone, so that a running kubelet keeps its binary.
func goBuild(ctx context.Context, dir, goarch, ldflags, result, pkg string, out io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(result), 0o755); err != nil {
		return err
	}
	cmd := goCommand(ctx, dir, goarch, buildArgs(ldflags, result, pkg)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s in %s: %w", pkg, dir, err)
	}
	return nil
}

func buildArgs(ldflags, result, pkg string) []string {
	return []string{"build", "-mod=readonly", "-trimpath", "-tags", buildTags, "-ldflags", ldflags, "-o", result, pkg}
}

// goEnv is the environment of every go command that works on upstream sources.
// Settings that change the result are fixed here, whatever the caller's shell has.
func goEnv(goarch string) []string {
	env := os.Environ()[:0:0]
	fixed := map[string]string{
		"CGO_ENABLED":  "0",
		"GOOS":         "linux",
		"GOARCH":       goarch,
		"GOFLAGS":      "-buildvcs=false",
		"GOWORK":       "off",
		"GOEXPERIMENT": "",
		"GOAMD64":      "v1",
		"GOARM64":      "v8.0",
		"GOFIPS140":    "off",
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if _, ok := fixed[name]; !ok {
			env = append(env, kv)
		}
	}
	for name, value := range fixed {
		env = append(env, name+"="+value)
	}
	return env
}

func goCommand(ctx context.Context, dir, goarch string, args ...string) *exec.Cmd {
	cmd := command(ctx, dir, "go", args...)
	cmd.Env = goEnv(goarch)
	return cmd
}

// linkInto gives a file a second name, in one step. It copies when the two
// directories are on different file systems.
func linkInto(from, to string) error {
	a, err := os.Stat(from)
	if err != nil {
		return err
	}
	if b, err := os.Stat(to); err == nil && os.SameFile(a, b) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	tmp := to + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(from, tmp); err != nil {
		if err := copyFile(from, tmp); err != nil {
			return err
		}
		if err := os.Chmod(tmp, 0o755); err != nil {
			return err
		}
	}
	return os.Rename(tmp, to)
}
