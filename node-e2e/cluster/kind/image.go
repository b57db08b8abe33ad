package kind

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	buildkind "kubelet-guard.io/build/kind"
	"kubelet-guard.io/node-e2e/images"
)

// layout is part of every image's tag. It changes with what this file does with the
// same programs.
const layout = 1

// nodeImages are the names of the images of a cluster's nodes.
type nodeImages struct {
	Stock   string `json:"stock"`
	Guarded string `json:"guarded"`
}

// programs are the files that node images are made of, all below the output folder.
type programs struct {
	output  string
	version string
	// kubelets is the folder of both kubelets.
	kubelets string
}

// findPrograms finds what the node images are made of: that of a version, or with "" that of
// the kubelets in bin.
func findPrograms(ctx context.Context, output, version string) (programs, error) {
	p := programs{output: output, version: version, kubelets: filepath.Join(output, cmp.Or(version, "bin"))}
	printed, err := exec.CommandContext(ctx, p.stock(), "--version").Output()
	if err != nil {
		return programs{}, fmt.Errorf("%s: %w (make kubelet-stock builds it)", p.stock(), err)
	}
	if p.version = strings.TrimSpace(strings.TrimPrefix(string(printed), "Kubernetes ")); version != "" && version != p.version {
		return programs{}, fmt.Errorf("%s is %s: make binaries kind-binaries KUBE_VERSION=%s", p.stock(), p.version, version)
	}
	var missing []string
	for _, file := range append(p.files(), p.guarded()) {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, file)
		}
	}
	if len(missing) > 0 {
		return programs{}, fmt.Errorf("not built: %s (make binaries kind-binaries builds them)", strings.Join(missing, ", "))
	}
	return p, nil
}

// inNode are the programs in the file system of a node, by path.
func (p programs) inNode() map[string]string {
	in := map[string]string{
		"usr/bin/kubelet":           p.stock(),
		"usr/local/bin/dial-socket": filepath.Join(p.output, "kind", "bin", "dial-socket"),
	}
	for _, name := range []string{"kubeadm", "kubectl"} {
		in["usr/bin/"+name] = filepath.Join(p.output, p.version, name)
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		in["usr/local/bin/"+name] = filepath.Join(p.output, "node", "bin", name)
	}
	for _, name := range []string{"host-local", "loopback", "ptp", "portmap"} {
		in["opt/cni/bin/"+name] = filepath.Join(p.output, "node", "bin", name)
	}
	return in
}

// stock and guarded are the kubelets.
func (p programs) stock() string   { return filepath.Join(p.kubelets, "kubelet-stock") }
func (p programs) guarded() string { return filepath.Join(p.kubelets, "kubelet") }

// files are the programs of a stock node, those in images of the control plane among
// them.
func (p programs) files() []string {
	var files []string
	for _, file := range p.inNode() {
		files = append(files, file)
	}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		files = append(files, filepath.Join(p.output, p.version, name))
	}
	for _, name := range []string{"etcd", "pause", "workload"} {
		files = append(files, filepath.Join(p.output, "node", "bin", name))
	}
	for _, name := range []string{"coredns", "podnet"} {
		files = append(files, filepath.Join(p.output, "kind", "bin", name))
	}
	slices.Sort(files)
	return files
}

// imagePlan is what the images of the nodes are made of. Their names follow from it.
type imagePlan struct {
	images   nodeImages
	root     root
	archives imagesConfig
	node     buildContext
}

// planImages says what images the programs make. The root file system must be there.
func planImages(ctx context.Context, p programs, root root) (imagePlan, error) {
	archives := imagesConfig{Output: p.output, Version: p.version, Root: root.Tree, Dir: filepath.Join(p.output, "kind", "images")}
	node, err := nodeContext(ctx, p, root, sandboxImage(archives))
	if err != nil {
		return imagePlan{}, err
	}
	stock, err := fingerprint(p.files(), layout, root.Fingerprint, buildkind.NodeDockerfile, node.content)
	if err != nil {
		return imagePlan{}, err
	}
	guarded, err := fingerprint([]string{p.guarded()}, stock, buildkind.Dockerfile)
	if err != nil {
		return imagePlan{}, err
	}
	return imagePlan{
		images: nodeImages{
			Stock:   "localhost/guard/kind-node:" + p.version + "-" + stock,
			Guarded: "localhost/guard/kind-node-guarded:" + p.version + "-" + guarded,
		},
		root: root, archives: archives, node: node,
	}, nil
}

// buildImages makes the images of the nodes. Images that the engine already has of the
// same parts are not made again.
func buildImages(ctx context.Context, e engine, p programs, log io.Writer) (nodeImages, error) {
	root, err := prepareRoot(ctx, p.output, log)
	if err != nil {
		return nodeImages{}, err
	}
	plan, err := planImages(ctx, p, root)
	if err != nil {
		return nodeImages{}, err
	}
	images := plan.images
	started := time.Now()
	if !e.hasImage(ctx, images.Stock) {
		fmt.Fprintf(log, "Making the node image %s\n", images.Stock)
		if err := buildStock(ctx, e, plan); err != nil {
			return nodeImages{}, fmt.Errorf("node image: %w", err)
		}
		fmt.Fprintf(log, "The node image took %s\n", time.Since(started).Round(time.Second))
	}
	if !e.hasImage(ctx, images.Guarded) {
		fmt.Fprintf(log, "Making the node image %s\n", images.Guarded)
		guarded := buildContext{
			content: map[string][]byte{"Dockerfile": buildkind.Dockerfile},
			files:   map[string]string{"kubelet": p.guarded()},
		}
		if err := guarded.build(ctx, e, images.Guarded, "--build-arg=BASE="+images.Stock); err != nil {
			return nodeImages{}, fmt.Errorf("node image with the guarded kubelet: %w", err)
		}
	}
	return images, nil
}

// nodeContext is the context of build/kind/node.Dockerfile.
func nodeContext(ctx context.Context, p programs, root root, sandbox string) (buildContext, error) {
	containerd, err := os.ReadFile(filepath.Join(root.Tree, "etc", "containerd", "config.toml"))
	if err != nil {
		return buildContext{}, err
	}
	line := regexp.MustCompile(`(?m)^(\s*sandbox_image = ).*$`)
	if !line.Match(containerd) {
		return buildContext{}, errors.New("kind's configuration of containerd has no sandbox_image")
	}
	runtime, err := baseRuntimeSpec(ctx, p)
	if err != nil {
		return buildContext{}, fmt.Errorf("runtime specification of the nodes: %w", err)
	}
	c := buildContext{
		content: map[string][]byte{
			"Dockerfile":                               buildkind.NodeDockerfile,
			"root/kind/version":                        []byte(p.version),
			"root/kind/manifests/default-cni.yaml":     []byte(defaultCNI),
			"root/kind/manifests/default-storage.yaml": []byte(defaultStorage),
			"root/etc/containerd/config.toml":          line.ReplaceAll(containerd, fmt.Appendf(nil, "${1}%q", sandbox)),
			"root/etc/containerd/cri-base.json":        runtime,
			"root/etc/kubernetes/manifests/.keep":      nil,
		},
		files: map[string]string{},
	}
	for name, file := range p.inNode() {
		c.files["root/"+name] = file
	}
	return c, nil
}

// baseRuntimeSpec is the OCI specification that containers of pods start from:
// containerd's own without limits, and with kind's hook, which hides the name and the
// identity of the machine.
func baseRuntimeSpec(ctx context.Context, p programs) ([]byte, error) {
	ctr := exec.CommandContext(ctx, filepath.Join(p.output, "node", "bin", "ctr"), "oci", "spec")
	content, err := ctr.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(ctr.Args, " "), err)
	}
	var spec map[string]any
	if err := json.Unmarshal(content, &spec); err != nil {
		return nil, err
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return nil, errors.New("ctr oci spec has no process")
	}
	delete(process, "rlimits")
	spec["hooks"] = map[string]any{"createContainer": []any{map[string]any{"path": "/kind/bin/mount-product-files.sh"}}}
	return json.Marshal(spec)
}

// buildStock makes the image of nodes with the stock kubelet.
func buildStock(ctx context.Context, e engine, plan imagePlan) (err error) {
	base := "localhost/guard/kind-root:" + plan.root.Fingerprint
	if !e.hasImage(ctx, base) {
		if err := importTree(ctx, e, plan.root.Tree, base); err != nil {
			return err
		}
	}
	bare := plan.images.Stock + "-bare"
	if err := plan.node.build(ctx, e, bare, "--build-arg=BASE="+base); err != nil {
		return err
	}
	archives, err := buildArchives(ctx, plan.archives)
	if err != nil {
		return err
	}
	id, err := e.docker(ctx, nil, "run", "--detach", "--privileged", "--network=none", "--entrypoint=sleep", bare, "infinity")
	if err != nil {
		return err
	}
	id = strings.TrimSpace(id)
	defer func() {
		always := context.WithoutCancel(ctx)
		_, removed := e.docker(always, nil, "rm", "--force", "--volumes", id)
		_, untagged := e.docker(always, nil, "rmi", bare)
		err = errors.Join(err, removed, untagged)
	}()
	if _, err := e.docker(ctx, nil, "exec", "--detach", id, "containerd", "--log-level=error"); err != nil {
		return err
	}
	err = poll(ctx, time.Minute, 200*time.Millisecond, func(ctx context.Context) error {
		_, err := e.docker(ctx, nil, "exec", id, "ctr", "version")
		return err
	})
	if err != nil {
		return fmt.Errorf("containerd that receives the images: %w", err)
	}
	for _, archive := range archives {
		if err := importArchive(ctx, e, id, archive, "--no-unpack", "--label=io.cri-containerd.pinned=pinned"); err != nil {
			return err
		}
	}
	// It ends gracefully, so that the database is complete.
	if _, err := e.docker(ctx, nil, "exec", id, "sh", "-c", "pkill -x containerd && while pgrep -x containerd >/dev/null; do sleep 0.1; done"); err != nil {
		return err
	}
	_, err = e.docker(ctx, nil, "commit", `--change=ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]`, "--change=CMD []", id, plan.images.Stock)
	return err
}

// importArchive makes the images in an archive known to the containerd in a container.
func importArchive(ctx context.Context, e engine, container, archive string, flags ...string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	args := append([]string{"exec", "--interactive", container, "ctr", "--namespace=k8s.io", "images", "import", "--all-platforms"}, flags...)
	if _, err := e.docker(ctx, file, append(args, "-")...); err != nil {
		return fmt.Errorf("importing %s: %w", archive, err)
	}
	return nil
}

// importTree makes an image of a folder.
func importTree(ctx context.Context, e engine, tree, name string) error {
	tar := exec.CommandContext(ctx, "tar", "--create", "--numeric-owner", "--one-file-system", "--directory="+tree, ".")
	var stderr strings.Builder
	tar.Stderr = &stderr
	content, err := tar.StdoutPipe()
	if err != nil {
		return err
	}
	if err := tar.Start(); err != nil {
		return err
	}
	_, err = e.docker(ctx, content, "import", "-", name)
	if failed := tar.Wait(); failed != nil {
		err = errors.Join(err, fmt.Errorf("tar of %s: %w: %s", tree, failed, stderr.String()))
	}
	return err
}

// buildContext is what `docker build` gets.
type buildContext struct {
	// content and files are by their name in the context. Files are executable, content
	// is not.
	content map[string][]byte
	files   map[string]string
}

// build makes an image of the context's Dockerfile.
func (c buildContext) build(ctx context.Context, e engine, name string, flags ...string) error {
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(c.write(writer)) }()
	defer reader.Close()
	args := append([]string{"build", "--quiet", "--network=none", "--tag=" + name}, flags...)
	_, err := e.docker(ctx, reader, append(args, "-")...)
	return err
}

func (c buildContext) write(w io.Writer) error {
	archive := tar.NewWriter(w)
	made := map[string]bool{".": true}
	var folder func(string) error
	folder = func(name string) error {
		if made[name] {
			return nil
		}
		if err := folder(path.Dir(name)); err != nil {
			return err
		}
		made[name] = true
		return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
	}
	for name, content := range c.content {
		if err := folder(path.Dir(name)); err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := archive.Write(content); err != nil {
			return err
		}
	}
	for name, file := range c.files {
		if err := folder(path.Dir(name)); err != nil {
			return err
		}
		if err := addFile(archive, name, file); err != nil {
			return err
		}
	}
	return archive.Close()
}

func addFile(archive *tar.Writer, name, file string) error {
	source, err := os.Open(file)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &fs.PathError{Op: "add to an image", Path: file, Err: errors.New("not a regular file")}
	}
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(archive, source)
	return err
}

// fingerprint identifies the content of files together with other values.
func fingerprint(files []string, others ...any) (string, error) {
	sum := sha256.New()
	// A map is printed in the order of its keys.
	fmt.Fprintln(sum, others...)
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, filepath.Base(name))
		_, err = io.Copy(sum, file)
		file.Close()
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

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
		// The sandbox's image is the runtime's to choose.
		if program(name) == "pause" {
			continue
		}
		image, err := c.image(name)
		if err != nil {
			return nil, err
		}
		list = append(list, image)
	}
	var archives []string
	for _, image := range list {
		archive, err := c.write(image)
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

// write writes an image and returns the path of its archive.
func (c imagesConfig) write(image images.Image) (string, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	archive := filepath.Join(c.Dir, program(image.Name)+".tar")
	return archive, images.WriteFile(archive, image)
}

// wantedByKubeadm are the references of the images that kubeadm's manifests name, and that
// of pause.
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
	return strings.Fields(string(output)), nil
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
	case "pause":
		return images.Program(name, c.part("node", "pause")), nil
	}
	return images.Image{}, fmt.Errorf("kubeadm %s needs the image %s, and nothing here builds it; add it to node-e2e/cluster/kind/image.go", c.Version, name)
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
