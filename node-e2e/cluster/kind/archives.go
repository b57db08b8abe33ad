package kind

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"kubelet-guard.io/node-e2e/images"
)

// podnetImage is the image of the pod network, which manifests/default-cni.yaml names.
const podnetImage = "localhost/guard/podnet:dev"

// Manifests that kind installs from the control plane's node.
var (
	//go:embed manifests/default-cni.yaml
	defaultCNI string
	//go:embed manifests/default-storage.yaml
	defaultStorage string
)

// imagesConfig says where the programs of images are.
type imagesConfig struct {
	// Output is the folder with what was built.
	Output string
	// Version is the version of Kubernetes, such as v1.36.3.
	Version string
	// Root is the Debian tree that kube-proxy's iptables are taken from.
	Root string
	// Dir is the folder for the archives.
	Dir string
}

// sandboxImage is the image that the nodes' runtime makes sandboxes of.
func sandboxImage(imagesConfig) string { return images.Pause }

// buildArchives writes the images that a node must know before its first pod, in the
// form of `docker save`, and returns the paths of the archives. They are the ones that
// kubeadm needs, the pod network's and those of the tests.
func buildArchives(ctx context.Context, c imagesConfig) ([]string, error) {
	wanted, err := c.wantedByKubeadm(ctx)
	if err != nil {
		return nil, err
	}
	list := []images.Image{
		images.Program(images.Pause, c.part("node", "pause")),
		images.Program(images.Workload, c.part("node", "workload")),
		images.Program(podnetImage, c.part("kind", "podnet")),
	}
	for _, name := range wanted {
		image, err := c.image(name)
		if err != nil {
			return nil, err
		}
		list = append(list, image)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	var archives []string
	for _, image := range list {
		archive := filepath.Join(c.Dir, program(image.Name)+".tar")
		if err := writeArchive(archive, image); err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

func writeArchive(archive string, image images.Image) error {
	file, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := images.Write(file, image); err != nil {
		return err
	}
	return file.Close()
}

// wantedByKubeadm are the references of the images that kubeadm's manifests name,
// except the sandbox's, which is the runtime's to choose.
func (c imagesConfig) wantedByKubeadm(ctx context.Context) ([]string, error) {
	kubeadm := filepath.Join(c.Output, c.Version, "kubeadm")
	output, err := exec.CommandContext(ctx, kubeadm, "config", "images", "list", "--kubernetes-version="+c.Version).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("%s config images list: %w", kubeadm, err)
	}
	var wanted []string
	for _, name := range strings.Fields(string(output)) {
		if program(name) != "pause" {
			wanted = append(wanted, name)
		}
	}
	return wanted, nil
}

// image makes one of the images that kubeadm needs.
func (c imagesConfig) image(name string) (images.Image, error) {
	at := "/usr/local/bin/" + program(name)
	switch program(name) {
	case "kube-apiserver", "kube-controller-manager", "kube-scheduler":
		return images.Image{Name: name, Files: []images.File{{Path: at, Source: c.kubernetes(name)}}}, nil
	case "kube-proxy":
		tables, err := packetFilter(c.Root)
		if err != nil {
			return images.Image{}, err
		}
		return images.Image{Name: name, Files: append(tables, images.File{Path: at, Source: c.kubernetes(name)})}, nil
	case "etcd":
		return images.Image{Name: name, Files: []images.File{{Path: at, Source: c.part("node", "etcd")}}}, nil
	case "coredns":
		return images.Program(name, c.part("kind", "coredns")), nil
	}
	return images.Image{}, fmt.Errorf("kubeadm %s needs the image %s, and nothing here builds it; add it to node-e2e/cluster/kind/archives.go", c.Version, name)
}

func (c imagesConfig) kubernetes(name string) string {
	return filepath.Join(c.Output, c.Version, program(name))
}

func (c imagesConfig) part(kind, name string) string {
	return filepath.Join(c.Output, kind, "bin", name)
}

// program is the last part of an image's repository, which is its program's name.
func program(reference string) string {
	name, _, _ := strings.Cut(path.Base(reference), ":")
	return name
}

// packetFilter are the programs with which kube-proxy sets its rules. kube-proxy calls
// iptables or nft, and iptables loads a plugin for every kind of match and target.
func packetFilter(root string) ([]images.File, error) {
	tree := newDebianFiles(root)
	for _, name := range []string{
		"iptables", "iptables-save", "iptables-restore",
		"ip6tables", "ip6tables-save", "ip6tables-restore",
		"nft", "conntrack",
	} {
		if err := tree.add("/usr/sbin/" + name); err != nil {
			return nil, fmt.Errorf("image of kube-proxy: %w", err)
		}
	}
	plugins, err := fs.Glob(os.DirFS(root), "usr/lib/*/xtables/*.so")
	if err != nil {
		return nil, err
	}
	if len(plugins) == 0 {
		return nil, fmt.Errorf("image of kube-proxy: %s has no plugins of iptables in usr/lib/*/xtables", root)
	}
	for _, plugin := range plugins {
		if err := tree.add("/" + plugin); err != nil {
			return nil, fmt.Errorf("image of kube-proxy: %w", err)
		}
	}
	return tree.list(), nil
}
