// Package images writes container images without a container engine: the programs of
// the tests, in its subfolders, and whatever else a node must know before it starts a
// pod. An image has one layer. The same files give the same bytes.
package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"
)

// Images that the nodes of every test cluster have.
const (
	// Pause is the sandbox image.
	Pause = "localhost/guard/pause:dev"
	// Workload runs the program in workload; `workload --help` lists what it can do.
	Workload = "localhost/guard/workload:dev"
)

// Image is a container image.
type Image struct {
	// Name is the full reference, such as localhost/guard/workload:dev. If it names no
	// registry, nothing tries to pull it.
	Name string
	// Entrypoint is the program and its first arguments. May be empty.
	Entrypoint []string
	// Files are the contents of the layer. The folders above them, and those that a
	// runtime mounts over, need not be listed.
	Files []File
}

// File is a regular file or a symbolic link of an image.
type File struct {
	// Path is where it is in the image, absolute.
	Path string
	// Source is the file on this machine that has the content.
	Source string
	// Link is the target of a symbolic link; Source is empty then.
	Link string
	// Mode are the permissions. The default is 0755.
	Mode fs.FileMode
}

// Program makes the image of one static program, which lies at the root of the image's
// file system and is its entrypoint.
func Program(name, source string) Image {
	at := "/" + path.Base(source)
	return Image{Name: name, Entrypoint: []string{at}, Files: []File{{Path: at, Source: source}}}
}

// config is the part of an image's configuration that is used here, as the OCI image
// specification names it.
type config struct {
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

// manifest is an entry of manifest.json in an archive of `docker save` form.
type manifest struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// Write writes one archive with the images, for this machine's architecture, in the
// form of `docker save`. Container engines and ctr import it.
func Write(w io.Writer, images ...Image) error {
	archive := tar.NewWriter(w)
	var manifests []manifest
	for _, i := range images {
		m, err := i.write(archive)
		if err != nil {
			return fmt.Errorf("building the image %s: %w", i.Name, err)
		}
		manifests = append(manifests, m)
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

// WriteFile is Write into a new file.
func WriteFile(path string, images ...Image) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(Write(file, images...), file.Close())
}

func (i Image) write(archive *tar.Writer) (manifest, error) {
	layer, err := i.layer()
	if err != nil {
		return manifest{}, err
	}
	digest := fmt.Sprintf("%x", sha256.Sum256(layer))

	c := config{Architecture: runtime.GOARCH, OS: "linux"}
	c.Config.Entrypoint = i.Entrypoint
	c.Config.WorkingDir = "/"
	c.RootFS.Type = "layers"
	c.RootFS.DiffIDs = []string{"sha256:" + digest}
	encoded, err := json.Marshal(c)
	if err != nil {
		return manifest{}, err
	}
	m := manifest{
		Config:   fmt.Sprintf("%x.json", sha256.Sum256(encoded)),
		RepoTags: []string{i.Name},
		Layers:   []string{digest + "/layer.tar"},
	}
	if err := addFile(archive, m.Layers[0], 0o644, layer); err != nil {
		return manifest{}, err
	}
	return m, addFile(archive, m.Config, 0o644, encoded)
}

// layer is the image's file system as a tar.
func (i Image) layer() ([]byte, error) {
	// The folders that the runtime mounts over, and one to write to.
	folders := map[string]bool{"dev": true, "etc": true, "proc": true, "sys": true, "tmp": true}
	files := map[string]File{}
	for _, f := range i.Files {
		name := strings.TrimPrefix(path.Clean(f.Path), "/")
		if !path.IsAbs(f.Path) || name == "" {
			return nil, fmt.Errorf("file %q: the path must be absolute", f.Path)
		}
		if (f.Source == "") == (f.Link == "") {
			return nil, fmt.Errorf("file %s: set either the source or the link", f.Path)
		}
		files[name] = f
		for above := path.Dir(name); above != "."; above = path.Dir(above) {
			folders[above] = true
		}
	}
	var names []string
	for name := range folders {
		if f, ok := files[name]; ok {
			return nil, fmt.Errorf("file %s: it is also the folder of others", f.Path)
		}
		names = append(names, name)
	}
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)

	var layer bytes.Buffer
	content := tar.NewWriter(&layer)
	for _, name := range names {
		f, isFile := files[name]
		var err error
		switch {
		case !isFile:
			mode := int64(0o755)
			if name == "tmp" {
				mode = 0o1777
			}
			err = content.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
		case f.Link != "":
			err = content.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.Link, Mode: 0o777})
		default:
			err = f.add(content, name)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := content.Close(); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}

func (f File) add(content *tar.Writer, name string) error {
	source, err := os.ReadFile(f.Source)
	if err != nil {
		return err
	}
	mode := int64(f.Mode.Perm())
	if mode == 0 {
		mode = 0o755
	}
	return addFile(content, name, mode, source)
}

func addFile(archive *tar.Writer, name string, mode int64, content []byte) error {
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}
