package release

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// image is the archive of an OCI image for all architectures: static programs on nothing, with
// the settings of its Dockerfile in build/images.
type image struct {
	file, title string
	// name and tag are those that a runtime gives it when it loads the archive.
	name, tag string
	config    v1.Config
	// programs are the files of the one layer, at the root, by their names.
	programs func(arch string) map[string]Binary
}

func (r Release) images() []image {
	all := []image{{
		file:  "guard-webhook-" + r.Version + ".oci.tar",
		title: "Kubelet Guard webhook",
		name:  r.webhookImage(),
		tag:   r.Version,
		// The number that manifests/control-plane has. A name would need an /etc/passwd.
		config: v1.Config{User: "65532:65532", Entrypoint: []string{"/guard-webhook"}},
		programs: func(arch string) map[string]Binary {
			return map[string]Binary{"guard-webhook": r.own(Webhook, Platform{"linux", arch})}
		},
	}}
	for _, kube := range r.KubeVersions {
		// A plus is not allowed in a tag.
		tag := kube[1:] + "-guard." + r.Version
		all = append(all, image{
			file:   "guard-installer-" + tag + ".oci.tar",
			title:  "Kubelet Guard installer",
			name:   r.Registry + "/installer",
			tag:    tag,
			config: v1.Config{User: "0:0", Entrypoint: []string{"/guard-installer"}, Cmd: []string{"run"}},
			programs: func(arch string) map[string]Binary {
				return map[string]Binary{
					"guard-installer": r.own(Installer, Platform{"linux", arch}),
					"kubelet":         r.kubelet(kube, arch),
				}
			},
		})
	}
	return append(all, image{
		file:   "guard-etcd-" + r.Version + ".oci.tar",
		title:  "guard-etcd",
		name:   r.etcdImage(),
		tag:    r.Version,
		config: v1.Config{User: "0:0", Entrypoint: []string{"/guard-etcd"}},
		programs: func(arch string) map[string]Binary {
			return map[string]Binary{"guard-etcd": r.own(Etcd, Platform{"linux", arch})}
		},
	})
}

// reference is the name with the tag.
func (i image) reference() string { return i.name + ":" + i.tag }

// names are the annotations that a runtime takes name and tag from.
func (i image) names() map[string]string {
	return map[string]string{
		// The first is for containerd and Docker, the second for skopeo and the like.
		"io.containerd.image.name":          i.reference(),
		"org.opencontainers.image.ref.name": i.tag,
	}
}

func (r Release) webhookImage() string { return r.Registry + "/webhook" }

func (r Release) etcdImage() string { return r.Registry + "/guard-etcd" }

// settings is the configuration of an image with the annotations as labels.
func (r Release) settings(i image) v1.Config {
	c := i.config
	c.Env = []string{"PATH=/"}
	c.Labels = r.annotations(i)
	return c
}

func (r Release) annotations(i image) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":    i.title,
		"org.opencontainers.image.version":  r.Version,
		"org.opencontainers.image.revision": r.Commit,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
}

// writeImage writes the archive of an image.
func (r Release) writeImage(dir string, i image, files map[Binary]string) error {
	var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range architectures {
		img, err := r.imageFor(i, arch, files)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return r.writeIndex(dir, i, index)
}

// writeIndex writes the archive of an image from what it has for all architectures.
func (r Release) writeIndex(dir string, i image, index v1.ImageIndex) error {
	folder, err := os.MkdirTemp("", "image-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path, err := layout.Write(folder, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return err
	}
	if err := path.AppendIndex(index, layout.WithAnnotations(i.names())); err != nil {
		return err
	}
	return writeTar(filepath.Join(dir, i.file), os.DirFS(folder), r.Time)
}

// imageFor makes the image of one architecture.
func (r Release) imageFor(i image, arch string, files map[Binary]string) (v1.Image, error) {
	programs := i.programs(arch)
	var content bytes.Buffer
	archive := tar.NewWriter(&content)
	for _, name := range sortedKeys(programs) {
		data, err := os.ReadFile(files[programs[name]])
		if err != nil {
			return nil, err
		}
		if err := writeTarFile(archive, name, 0o755, data, r.Time); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: r.Time.UTC()},
		Config: r.settings(i), RootFS: v1.RootFS{Type: "layers"},
	}); err != nil {
		return nil, err
	}
	if img, err = mutate.Append(img, mutate.Addendum{
		Layer:     layer,
		MediaType: types.OCILayer,
		History:   v1.History{Created: v1.Time{Time: r.Time.UTC()}, CreatedBy: "guard-build release"},
	}); err != nil {
		return nil, err
	}
	annotated, ok := mutate.Annotations(img, r.annotations(i)).(v1.Image)
	if !ok {
		return nil, errors.New("an image with annotations is not an image")
	}
	return annotated, nil
}

// checkImage reads the archive of an image: checksums, architectures, settings and programs.
func checkImage(dir string, r Release, i image, all *binaries) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", i.file, err)
		}
	}()
	folder, err := os.MkdirTemp("", "image-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if err := extractTar(filepath.Join(dir, i.file), folder); err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return err
	}
	if err := validate.Index(index); err != nil {
		return err
	}
	outer, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(outer.Manifests) != 1 || !maps.Equal(outer.Manifests[0].Annotations, i.names()) {
		return fmt.Errorf("it should have one image, named %s", i.reference())
	}
	if index, err = index.ImageIndex(outer.Manifests[0].Digest); err != nil {
		return err
	}
	manifests, err := index.IndexManifest()
	if err != nil {
		return err
	}
	var archs []string
	blobs := []v1.Hash{outer.Manifests[0].Digest}
	for _, m := range manifests.Manifests {
		if m.Platform == nil || m.Platform.OS != "linux" || slices.Contains(archs, m.Platform.Architecture) {
			return fmt.Errorf("the platform of %s is %v", m.Digest, m.Platform)
		}
		archs = append(archs, m.Platform.Architecture)
		img, err := index.Image(m.Digest)
		if err != nil {
			return err
		}
		manifest, err := img.Manifest()
		if err != nil {
			return err
		}
		blobs = append(blobs, m.Digest, manifest.Config.Digest)
		for _, layer := range manifest.Layers {
			blobs = append(blobs, layer.Digest)
		}
		if err := checkImageFor(r, i, m.Platform.Architecture, img, all); err != nil {
			return fmt.Errorf("%s: %w", m.Platform.Architecture, err)
		}
	}
	if !slices.Equal(archs, architectures) {
		return fmt.Errorf("it is for %v, and should be for %v", archs, architectures)
	}
	return checkLayout(os.DirFS(folder), blobs)
}

// checkLayout compares the files of an archive with those of OCI's layout: with another one, such
// as Docker's manifest.json, a runtime may load another image.
func checkLayout(archive fs.FS, blobs []v1.Hash) error {
	want := map[string]bool{"index.json": true, "oci-layout": true}
	for _, blob := range blobs {
		want["blobs/"+blob.Algorithm+"/"+blob.Hex] = true
	}
	if err := fs.WalkDir(archive, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !want[path] {
			return fmt.Errorf("%s should not be there", path)
		}
		return err
	}); err != nil {
		return err
	}
	data, err := fs.ReadFile(archive, "oci-layout")
	if err != nil {
		return err
	}
	var format struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(data, &format); err != nil || format.Version != "1.0.0" {
		return fmt.Errorf("oci-layout should be of version 1.0.0: %s", data)
	}
	return nil
}

func checkImageFor(r Release, i image, arch string, img v1.Image, all *binaries) error {
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	want := r.settings(i)
	got := config.Config
	if config.OS != "linux" || config.Architecture != arch || !reflect.DeepEqual(got, want) {
		return fmt.Errorf("its settings are for %s/%s %+v, and should be for linux/%s %+v", config.OS, config.Architecture, got, arch, want)
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if len(layers) != 1 {
		return fmt.Errorf("it should have one layer, and has %d", len(layers))
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		return err
	}
	defer content.Close()
	programs, seen := i.programs(arch), map[string]bool{}
	if err := readTar(content, "layer.tar", func(file string, mode os.FileMode, content io.Reader) error {
		b, known := programs[file]
		if !known || !mode.IsRegular() || seen[file] {
			return fmt.Errorf("/%s should not be there", file)
		}
		if mode.Perm() != programMode {
			return fmt.Errorf("/%s has the mode %v, and should have %v", file, mode, programMode)
		}
		seen[file] = true
		if err := all.add(b, i.file+": /"+file, content); err != nil {
			return fmt.Errorf("/%s: %w", file, err)
		}
		return nil
	}); err != nil {
		return err
	}
	if len(seen) != len(programs) {
		return fmt.Errorf("it should have %v, and has %v", sortedKeys(programs), sortedKeys(seen))
	}
	return nil
}
