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

// NodePart is a program that a node needs beside Kubernetes. The lists of them are
// build/node/parts.yaml, which also says what the fields mean, and
// build/kind/parts.yaml.
type NodePart struct {
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

// LoadNodeParts reads a parts.yaml. Unknown fields and incomplete or repeated
// entries are errors.
func LoadNodeParts(file string) ([]NodePart, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list struct {
		Parts []NodePart `json:"parts"`
	}
	if err := yaml.UnmarshalStrict(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	seen := map[string]bool{}
	for i, p := range list.Parts {
		switch {
		case p.Name == "" || p.Module == "" || p.Package == "":
			return nil, fmt.Errorf("%s: parts[%d]: name, module and package are all required", file, i)
		case p.Name != filepath.Base(p.Name):
			return nil, fmt.Errorf("%s: parts[%d].name: %q is not a file name", file, i, p.Name)
		case seen[p.Name]:
			return nil, fmt.Errorf("%s: parts[%d].name: %s is listed twice", file, i, p.Name)
		}
		seen[p.Name] = true
	}
	if len(list.Parts) == 0 {
		return nil, fmt.Errorf("%s: parts is empty", file)
	}
	return list.Parts, nil
}

// BuildNodeParts builds the programs of build/node/parts.yaml, for this machine,
// into _output/node/bin. Progress is written to out.
func (r Repo) BuildNodeParts(ctx context.Context, out io.Writer) error {
	return r.buildParts(ctx, r.path("build", "node", "parts.yaml"), r.path("build", "node"), r.path("_output", "node", "bin"), out)
}

// BuildKindParts builds what a node of a kind cluster needs beside the node parts, for
// this machine: kubeadm and kube-proxy into _output/<version>, the programs of
// build/kind/parts.yaml into _output/kind/bin. Progress is written to out.
func (r Repo) BuildKindParts(ctx context.Context, u Upstream, out io.Writer) error {
	if err := r.Build(ctx, u, "", kindBinaries, out); err != nil {
		return err
	}
	return r.buildParts(ctx, r.path("build", "kind", "parts.yaml"), r.path("build", "kind", "coredns"), r.path("_output", "kind", "bin"), out)
}

// buildParts builds the programs of a list into a folder. Programs of other modules
// are built in the module that pins them.
func (r Repo) buildParts(ctx context.Context, list, module, results string, out io.Writer) error {
	parts, err := LoadNodeParts(list)
	if err != nil {
		return err
	}
	for _, p := range parts {
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
