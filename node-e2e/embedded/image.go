package embedded

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

// Image is a container image with one static program in one layer. Its
// entrypoint is the program, at the root of the file system.
type Image struct {
	// Name is the full reference, such as localhost/guard/workload:dev. It should
	// name no registry, so that nothing tries to pull it.
	Name string
	// Program is the path of the program's file.
	Program string
}

// nodeImages are the images that every cluster has.
func nodeImages(nodeDir string) []Image {
	return []Image{
		{Name: PauseImage, Program: filepath.Join(nodeDir, "pause")},
		{Name: WorkloadImage, Program: filepath.Join(nodeDir, "workload")},
	}
}

// imageConfig is the part of an image's configuration that is used here, as the
// OCI image specification names it.
type imageConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		Entrypoint []string `json:"Entrypoint"`
		WorkingDir string   `json:"WorkingDir"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// imageManifest is an entry of manifest.json in an archive of `docker save` form.
type imageManifest struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// writeImages writes one archive with the images, in the form of `docker save`.
// The same programs give the same bytes.
func writeImages(w io.Writer, images []Image) error {
	archive := tar.NewWriter(w)
	var manifests []imageManifest
	for _, i := range images {
		manifest, err := i.write(archive)
		if err != nil {
			return fmt.Errorf("building the image %s: %w", i.Name, err)
		}
		manifests = append(manifests, manifest)
	}
	content, err := json.Marshal(manifests)
	if err != nil {
		return err
	}
	if err := addFile(archive, "manifest.json", 0o644, content); err != nil {
		return err
	}
	return archive.Close()
}

func (i Image) write(archive *tar.Writer) (imageManifest, error) {
	program, err := os.ReadFile(i.Program)
	if err != nil {
		return imageManifest{}, err
	}
	var layer bytes.Buffer
	content := tar.NewWriter(&layer)
	// The folders that the runtime mounts over, and one to write to.
	for _, folder := range []string{"dev/", "etc/", "proc/", "sys/", "tmp/"} {
		mode := int64(0o755)
		if folder == "tmp/" {
			mode = 0o1777
		}
		if err := content.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: mode}); err != nil {
			return imageManifest{}, err
		}
	}
	name := filepath.Base(i.Program)
	if err := addFile(content, name, 0o755, program); err != nil {
		return imageManifest{}, err
	}
	if err := content.Close(); err != nil {
		return imageManifest{}, err
	}

	config := imageConfig{Architecture: runtime.GOARCH, OS: "linux"}
	config.Config.Entrypoint = []string{"/" + name}
	config.Config.WorkingDir = "/"
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}
	encoded, err := json.Marshal(config)
	if err != nil {
		return imageManifest{}, err
	}
	manifest := imageManifest{
		Config:   fmt.Sprintf("%x.json", sha256.Sum256(encoded)),
		RepoTags: []string{i.Name},
		Layers:   []string{name + "/layer.tar"},
	}
	if err := addFile(archive, manifest.Layers[0], 0o644, layer.Bytes()); err != nil {
		return imageManifest{}, err
	}
	return manifest, addFile(archive, manifest.Config, 0o644, encoded)
}

func addFile(archive *tar.Writer, name string, mode int64, content []byte) error {
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}
