package kind

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kind/pkg/cmd/kind/version"

	"kubelet-guard.io/node-e2e/debian"
)

// rootPrefix starts the names of folders with root file systems in _output/kind.
const rootPrefix = "root-"

// rootPackages are those of kind's base image, without clients for storage over the
// network, and with runc: Debian's can apply seccomp profiles.
var rootPackages = []string{
	"systemd",
	"conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod",
	"libseccomp2", "pigz", "e2fsprogs",
	"bash", "ca-certificates", "curl", "jq", "procps",
	"runc",
}

// root is the root file system of the nodes, without any program of Kubernetes.
type root struct {
	// Tree is its folder.
	Tree string
	// Fingerprint changes with its content.
	Fingerprint string
}

// findRoot returns the root file system with its content; it need not be made yet.
func findRoot(ctx context.Context, output string) (root, debian.Tree, error) {
	content, err := rootTree(ctx)
	if err != nil {
		return root{}, content, err
	}
	r := root{Fingerprint: content.Fingerprint()}
	r.Tree = filepath.Join(output, "kind", rootPrefix+r.Fingerprint)
	return r, content, nil
}

// prepareRoot makes the root file system, or returns the one that an earlier run made
// of the same parts.
func prepareRoot(ctx context.Context, output string, log io.Writer) (root, error) {
	r, content, err := findRoot(ctx, output)
	if err != nil {
		return root{}, err
	}
	if _, err := os.Stat(r.Tree); err == nil {
		return r, nil
	}
	if err := installPackages(ctx, log, map[string]string{"debootstrap": "debootstrap"}); err != nil {
		return root{}, err
	}
	fmt.Fprintf(log, "Making the root file system of the nodes, Debian %s (one to two minutes)\n", debian.Suite)
	partial := r.Tree + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return root{}, err
	}
	logFile, err := os.Create(filepath.Join(output, "kind", "debootstrap.log"))
	if err != nil {
		return root{}, err
	}
	defer logFile.Close()
	if err := content.Make(ctx, partial, logFile); err != nil {
		return root{}, fmt.Errorf("root file system of the nodes, see %s: %w", logFile.Name(), err)
	}
	// What only an installation needs.
	for _, dir := range []string{"var/cache/apt", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(partial, dir)); err != nil {
			return root{}, err
		}
	}
	return r, os.Rename(partial, r.Tree)
}

// rootTree is what kind's images/base/Dockerfile makes, in the terms of a tree: its
// files, no units but those that a node needs, and no kernel messages in the journal.
func rootTree(ctx context.Context) (debian.Tree, error) {
	files, err := kindFiles(ctx)
	if err != nil {
		return debian.Tree{}, fmt.Errorf("files of kind's base image: %w", err)
	}
	files["etc/systemd/journald.conf"] = debian.File{Content: []byte("[Journal]\nReadKMsg=no\n"), Mode: 0o644}
	tree := debian.Tree{
		Packages: rootPackages,
		Files:    files,
		Links: map[string]string{
			"usr/sbin/init": "/usr/lib/systemd/systemd",
			"etc/systemd/system/systemd-binfmt.service": os.DevNull,
		},
		Remove: []string{
			"usr/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
			"usr/lib/systemd/system/multi-user.target.wants/*",
			"etc/systemd/system/*.wants/*",
			"usr/lib/systemd/system/local-fs.target.wants/*",
			"usr/lib/systemd/system/sockets.target.wants/*udev*",
			"usr/lib/systemd/system/sockets.target.wants/*initctl*",
			"usr/lib/systemd/system/basic.target.wants/*",
			// Of no use in a container, and a fifth of the size.
			"usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*",
		},
	}
	for _, unit := range []string{"kubelet.service", "containerd.service", "undo-mount-hacks.service"} {
		tree.Links["etc/systemd/system/multi-user.target.wants/"+unit] = "/etc/systemd/system/" + unit
	}
	return tree, nil
}

// kindFiles are the files of kind's base image, by path.
func kindFiles(ctx context.Context) (map[string]debian.File, error) {
	dir, err := kindModule(ctx)
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, "images", "base", "files")
	files := map[string]debian.File{}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		// Modules have no modes.
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(name, "usr/local/bin/") || strings.HasPrefix(name, "kind/bin/") {
			mode = 0o755
		}
		files[name] = debian.File{Content: content, Mode: mode}
		return nil
	})
	return files, err
}

// kindModule is the folder with the source of kind, in the version that this program
// is built with.
func kindModule(ctx context.Context) (string, error) {
	// Anywhere but in a module: the result must not depend on one.
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", "sigs.k8s.io/kind@v"+version.Version())
	cmd.Dir = os.TempDir()
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, output)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(output, &module); err != nil {
		return "", err
	}
	return module.Dir, nil
}
