package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
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

// kindPrograms are the unpatched programs that a kind cluster has in addition.
var kindPrograms = []Binary{
	{Name: "kubeadm", Package: "./cmd/kubeadm", Tree: Stock},
	{Name: "kube-proxy", Package: "./cmd/kube-proxy", Tree: Stock},
}

// Build builds programs for linux/goarch; the empty goarch means this machine's.
// Results go to _output/<version>, those for another architecture to
// _output/<version>/linux-<goarch>. The two kubelets of this machine's
// architecture are also linked into _output/bin. Progress is written to out.
func (r Repo) Build(ctx context.Context, u Upstream, goarch string, binaries []Binary, out io.Writer) error {
	if goarch == "" {
		goarch = runtime.GOARCH
	}
	for _, b := range binaries {
		if err := r.buildOne(ctx, u, goarch, b, r.ResultFile(u, goarch, b), out); err != nil {
			return err
		}
	}
	return nil
}

// ResultFile is the file that Build writes; the empty goarch means this machine's.
func (r Repo) ResultFile(u Upstream, goarch string, b Binary) string {
	dir := r.outDir(u)
	if goarch != "" && goarch != runtime.GOARCH {
		dir = filepath.Join(dir, "linux-"+goarch)
	}
	return filepath.Join(dir, b.Name)
}

func (r Repo) buildOne(ctx context.Context, u Upstream, goarch string, b Binary, result string, out io.Writer) error {
	src, tree, release, err := r.holdTree(ctx, u, b.Tree, out)
	if err != nil {
		return err
	}
	defer release()
	start := time.Now()
	if err := r.build(ctx, upstreamProgram(tree, goarch, src.linkerFlags(), b.Package, result), out); err != nil {
		return err
	}
	// Suites and demo take what is in bin: the kubelets of the default minor version.
	if goarch == runtime.GOARCH && u.Minor() == semver.MajorMinor(KubeVersion) && (b == Kubelet || b == StockKubelet) {
		if err := linkInto(result, r.path("_output", "bin", b.Name)); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "%s: %s (%.0f s)\n", r.rel(result), src.version(), time.Since(start).Seconds())
	return nil
}

// VerifyReproducible builds programs a second time, from a copy of the tree in
// another directory and with an empty build cache, and compares the bytes with what
// Build left. It takes as long as a first build.
func (r Repo) VerifyReproducible(ctx context.Context, u Upstream, goarch string, binaries []Binary, out io.Writer) error {
	if goarch == "" {
		goarch = runtime.GOARCH
	}
	elsewhere, err := os.MkdirTemp("", "guard-reproduce-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(elsewhere)
	for _, b := range binaries {
		src, tree, release, err := r.holdTree(ctx, u, b.Tree, out)
		if err != nil {
			return err
		}
		copied := filepath.Join(elsewhere, string(b.Tree))
		if err := os.RemoveAll(copied); err != nil {
			return err
		}
		err = copyTree(tree, copied)
		release()
		if err != nil {
			return err
		}
		result := filepath.Join(elsewhere, b.Name)
		fmt.Fprintf(out, "Building %s again in %s with an empty cache\n", b.Name, copied)
		p := upstreamProgram(copied, goarch, src.linkerFlags(), b.Package, result)
		p.env = []string{"GOCACHE=" + filepath.Join(elsewhere, "cache")}
		if err := (Repo{Root: elsewhere}).build(ctx, p, out); err != nil {
			return err
		}
		built := r.ResultFile(u, goarch, b)
		first, err := os.ReadFile(built)
		if err != nil {
			return err
		}
		second, err := os.ReadFile(result)
		if err != nil {
			return err
		}
		if a, b2 := sha256.Sum256(first), sha256.Sum256(second); a != b2 {
			return fmt.Errorf("%s is not reproducible: %s has SHA-256 %x, a build elsewhere %x", b.Name, r.rel(built), a, b2)
		}
		fmt.Fprintf(out, "%s: the same %d bytes, SHA-256 %x\n", b.Name, len(first), sha256.Sum256(first))
	}
	return nil
}

// BuildProgram builds a program of this repository, static, stripped and without cgo, for any
// platform. Variables are set by the linker. Progress is written to out.
func (r Repo) BuildProgram(ctx context.Context, goos, goarch string, variables map[string]string, pkg, result string, out io.Writer) error {
	flags := []string{"-s", "-w"}
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		// The go command splits the flags at spaces that are not in quotes.
		flags = append(flags, "-X", "'"+name+"="+variables[name]+"'")
	}
	return r.buildUncached(ctx, program{
		dir: r.Root, goarch: goarch, pkg: pkg, result: result, env: []string{"GOOS=" + goos},
		args: []string{"-mod=readonly", "-trimpath", "-ldflags", strings.Join(flags, " ")},
	}, out)
}

// BuildTool builds a program of another module for this machine, with the versions that
// build/third_party/<module> pins. Progress is written to out.
func (r Repo) BuildTool(ctx context.Context, module, pkg, result string, out io.Writer) error {
	return r.buildUncached(ctx, program{
		dir: r.path("build", "third_party", module), goarch: runtime.GOARCH, pkg: pkg, result: result,
		args: []string{"-mod=readonly", "-trimpath", "-ldflags", "-s -w"},
	}, out)
}

// buildUncached leaves it to the go command to keep what it has built: linking takes seconds.
func (r Repo) buildUncached(ctx context.Context, p program, out io.Writer) error {
	start := time.Now()
	if err := (Repo{Root: r.Root}).build(ctx, p, out); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s (%.0f s)\n", r.rel(p.result), time.Since(start).Seconds())
	return nil
}

// version returns the version string that programs of a tree report.
func (s source) version() string {
	if s.tree == Guarded {
		return GuardedVersion(s.upstream.Version)
	}
	return s.upstream.Version
}

// linkerFlags strip the binary and set its version. The archive has placeholders
// where a git checkout has its commit, and there is no commit to name: the field
// carries the fingerprint of the sources instead, so that two binaries with equal
// version and different sources can be distinguished.
func (s source) linkerFlags() string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(s.upstream.Minor(), "v"), ".")
	flags := []string{"-s", "-w"}
	for _, v := range [][2]string{
		{"gitVersion", s.version()},
		{"gitMajor", major},
		{"gitMinor", minor},
		{"gitCommit", s.programs()[:40]},
		{"gitTreeState", "archive"},
		{"buildDate", "1970-01-01T00:00:00Z"},
	} {
		for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
			flags = append(flags, "-X", pkg+"."+v[0]+"="+v[1])
		}
	}
	return strings.Join(flags, " ")
}

// programs identifies the sources of a tree's programs. Tests are not among them.
func (s source) programs() string {
	return s.fingerprint(func(name string) bool { return !testOnly(name) })
}

// program is one call of go build.
type program struct {
	// dir is where the go command runs.
	dir, goarch string
	// args are those of go build, without the result and the package.
	args []string
	pkg  string
	// env is added to the environment of the go command.
	env []string
	// result is the file to write.
	result string
}

// build builds a program. A result that is up to date keeps its file, so that a running
// kubelet keeps its binary. What the checkout lacks may be in the cache; the go
// command then finds out whether it is current, from the ID in the program, a hash of
// compiler, flags and every source. The key is where to look,
// and no more.
func (r Repo) build(ctx context.Context, p program, out io.Writer) error {
	if err := os.MkdirAll(filepath.Dir(p.result), 0o755); err != nil {
		return err
	}
	name := filepath.Base(p.result)
	key := fmt.Sprintf("%s-%s-%.32x", name, p.goarch, sha256.Sum256(fmt.Appendf(nil, "%q %q %q", p.args, p.pkg, p.env)))
	if _, err := os.Stat(p.result); errors.Is(err, fs.ErrNotExist) && r.Cache != "" {
		if err := r.cache().take(ctx, "programs", key, name, p.result, out); err != nil {
			return err
		}
	}
	before, _ := os.Stat(p.result)
	cmd := goCommand(ctx, p.dir, p.goarch, slices.Concat([]string{"build"}, p.args, []string{"-o", p.result, p.pkg})...)
	cmd.Env = append(cmd.Env, p.env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s in %s: %w", p.pkg, p.dir, err)
	}
	after, err := os.Stat(p.result)
	if err != nil || before != nil && os.SameFile(before, after) || r.Cache == "" {
		return err
	}
	return r.cache().put(ctx, "programs", key, out, func(dir string) error {
		return copyFile(p.result, filepath.Join(dir, name), 0o644)
	})
}

// upstreamProgram is a program of an upstream tree.
func upstreamProgram(tree, goarch, ldflags, pkg, result string) program {
	return program{
		dir: tree, goarch: goarch, pkg: pkg, result: result,
		args: []string{"-mod=readonly", "-trimpath", "-tags", buildTags, "-ldflags", ldflags},
	}
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
	// A test that queries its folder reads PWD: the caller's would be another one in each
	// checkout.
	cmd.Env = append(goEnv(goarch), "PWD="+dir)
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
	return replaceFile(to, func(tmp string) error {
		if os.Link(from, tmp) == nil {
			return nil
		}
		return copyFile(from, tmp, 0o755)
	})
}
