package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// NodeBinary is a program that a node needs besides Kubernetes. The lists of them are
// build/third_party/node/binaries.yaml, which explains the fields, and
// build/kind/binaries.yaml.
type NodeBinary struct {
	// Name is the file name below _output/node/bin or _output/kind/bin.
	Name string `json:"name"`
	// Module is the module that Package is in.
	Module string `json:"module"`
	// Package is the import path of the main package.
	Package string `json:"package"`
	// Cgo is set for programs that need a C compiler.
	Cgo bool `json:"cgo"`
	// Tags are build tags.
	Tags []string `json:"tags,omitempty"`
	// LDFlags are linker flags in addition to -s -w.
	LDFlags string `json:"ldflags,omitempty"`
}

// LoadNodeBinaries reads a binaries.yaml. Unknown fields and incomplete or repeated
// entries are errors.
func LoadNodeBinaries(file string) ([]NodeBinary, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list struct {
		Binaries []NodeBinary `json:"binaries"`
	}
	if err := yaml.UnmarshalStrict(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	seen := map[string]bool{}
	for i, p := range list.Binaries {
		switch {
		case p.Name == "" || p.Module == "" || p.Package == "":
			return nil, fmt.Errorf("%s: binaries[%d]: name, module and package are all required", file, i)
		case p.Name != filepath.Base(p.Name):
			return nil, fmt.Errorf("%s: binaries[%d].name: %q is not a file name", file, i, p.Name)
		case seen[p.Name]:
			return nil, fmt.Errorf("%s: binaries[%d].name: %s is listed twice", file, i, p.Name)
		}
		seen[p.Name] = true
	}
	if len(list.Binaries) == 0 {
		return nil, fmt.Errorf("%s: binaries is empty", file)
	}
	return list.Binaries, nil
}

// BuildNodeBinaries builds the programs of build/third_party/node/binaries.yaml, for this machine,
// into _output/node/bin. Progress is written to out.
func (r Repo) BuildNodeBinaries(ctx context.Context, out io.Writer) error {
	return r.buildListed(ctx, r.path("build", "third_party", "node", "binaries.yaml"), r.path("build", "third_party", "node"), r.path("_output", "node", "bin"), out)
}

// BuildKindBinaries builds what a node of a kind cluster needs besides the node binaries, for
// this machine: kubeadm and kube-proxy into _output/<version>, the programs of
// build/kind/binaries.yaml into _output/kind/bin. Progress is written to out.
func (r Repo) BuildKindBinaries(ctx context.Context, u Upstream, out io.Writer) error {
	if err := r.Build(ctx, u, "", kindPrograms, out); err != nil {
		return err
	}
	return r.buildListed(ctx, r.path("build", "kind", "binaries.yaml"), r.path("build", "third_party", "coredns"), r.path("_output", "kind", "bin"), out)
}

// buildListed builds the programs of a list into a folder. Programs of other modules
// are built in the module that pins them.
func (r Repo) buildListed(ctx context.Context, list, module, results string, out io.Writer) error {
	binaries, err := LoadNodeBinaries(list)
	if err != nil {
		return err
	}
	for _, p := range binaries {
		dir := module
		if p.Module == ModulePath {
			dir = r.Root
		}
		result := filepath.Join(results, p.Name)
		args := []string{"-mod=readonly", "-trimpath", "-ldflags", strings.TrimSpace("-s -w " + p.LDFlags)}
		if len(p.Tags) > 0 {
			args = append(args, "-tags", strings.Join(p.Tags, ","))
		}
		start := time.Now()
		call := program{dir: dir, goarch: runtime.GOARCH, args: args, pkg: p.Package, result: result}
		if p.Cgo {
			call.env = []string{"CGO_ENABLED=1"}
		}
		if err := r.build(ctx, call, out); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s (%.0f s)\n", r.rel(result), time.Since(start).Seconds())
	}
	return nil
}
