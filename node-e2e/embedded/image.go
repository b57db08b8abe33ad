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

// image is a container image with one program in one layer.
type image struct {
	name    string
	program string
}

var images = []image{
	{name: PauseImage, program: "pause"},
	{name: WorkloadImage, program: "workload"},
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

// writeImages writes one archive with all images, in the form of `docker save`.
// The same programs give the same bytes.
func writeImages(w io.Writer, programDir string) error {
	archive := tar.NewWriter(w)
	var manifests []imageManifest
	for _, i := range images {
		manifest, err := i.write(archive, programDir)
		if err != nil {
			return fmt.Errorf("building the image %s: %w", i.name, err)
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

func (i image) write(archive *tar.Writer, programDir string) (imageManifest, error) {
	program, err := os.ReadFile(filepath.Join(programDir, i.program))
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
	if err := addFile(content, i.program, 0o755, program); err != nil {
		return imageManifest{}, err
	}
	if err := content.Close(); err != nil {
		return imageManifest{}, err
	}

	config := imageConfig{Architecture: runtime.GOARCH, OS: "linux"}
	config.Config.Entrypoint = []string{"/" + i.program}
	config.Config.WorkingDir = "/"
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}
	encoded, err := json.Marshal(config)
	if err != nil {
		return imageManifest{}, err
	}
	manifest := imageManifest{
		Config:   fmt.Sprintf("%x.json", sha256.Sum256(encoded)),
		RepoTags: []string{i.name},
		Layers:   []string{i.program + "/layer.tar"},
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
