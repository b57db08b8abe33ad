package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Names of the kubelets that BuildFailing makes, in _output/failing.
const (
	// NotStarting ends at once: it does not know --guard-config.
	NotStarting = "kubelet-not-starting"
	// Unguarded takes --guard-config and ignores it.
	Unguarded = "kubelet-unguarded"
)

// flagAnchor is the line of the stock tree behind which the flag is added.
const flagAnchor = "func (f *KubeletFlags) AddFlags(mainfs *pflag.FlagSet) {\n\tfs := pflag.NewFlagSet(\"\", pflag.ExitOnError)\n"

// BuildFailing builds two kubelets for the tests of roll-outs, for this machine. Both are
// the stock kubelet under the version of the guarded one: what comes of a build in which
// the patches were forgotten. Progress is written to out.
func (r Repo) BuildFailing(ctx context.Context, u Upstream, out io.Writer) error {
	src, tree, release, err := r.holdTree(ctx, u, Stock, out)
	if err != nil {
		return err
	}
	defer release()
	flags := src.linkerFlags()
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += " -X " + pkg + ".gitVersion=" + GuardedVersion(u.Version) // the last one counts
	}
	dir := r.path("_output", "failing")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	overlay, err := ignoredFlag(tree, dir)
	if err != nil {
		return err
	}
	for _, b := range []struct {
		name  string
		flags []string
	}{{NotStarting, nil}, {Unguarded, []string{"-overlay", overlay}}} {
		p := upstreamProgram(tree, runtime.GOARCH, flags, Kubelet.Package, filepath.Join(dir, b.name))
		p.args = append(p.args, b.flags...)
		if err := r.build(ctx, p, out); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: the stock kubelet as %s\n", r.rel(filepath.Join(dir, b.name)), GuardedVersion(u.Version))
	}
	return nil
}

// ignoredFlag writes an overlay of the tree in which the kubelet has the flag and does
// nothing with it, and returns its path.
func ignoredFlag(tree, dir string) (string, error) {
	source := filepath.Join(tree, "cmd", "kubelet", "app", "options", "options.go")
	data, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	before, after, ok := strings.Cut(string(data), flagAnchor)
	if !ok {
		return "", fmt.Errorf("%s: the place where the kubelet's flags are added is not where it was", source)
	}
	return writeOverlay(dir, source, []byte(before+flagAnchor+"\tfs.String(\"guard-config\", \"\", \"Ignored.\")\n"+after))
}

// writeOverlay writes an overlay for the go command to a folder, in which a file has another
// content, and returns its path.
func writeOverlay(dir, file string, content []byte) (string, error) {
	replacement, overlay := filepath.Join(dir, "overlay.go.txt"), filepath.Join(dir, "overlay.json")
	if _, err := writeFile(replacement, content); err != nil {
		return "", err
	}
	data, err := json.Marshal(map[string]any{"Replace": map[string]string{file: replacement}})
	if err != nil {
		return "", err
	}
	_, err = writeFile(overlay, data)
	return overlay, err
}
