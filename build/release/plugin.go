package release

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"sigs.k8s.io/yaml"
)

// Programs that people install themselves are in archives, with the licence; the plugin as krew
// installs it.
const licence = "LICENSE"

// archived are the programs in archives, and the files of the checkout that go with each.
var archived = map[Program][]string{
	Plugin: nil,
	Etcd: {
		"manifests/data-protection/systemd/guard-etcd-save.service",
		"manifests/data-protection/systemd/guard-etcd-save.timer",
	},
}

// archiveFile is the name of a program's archive for a platform.
func archiveFile(b Binary) string {
	if b.OS == "windows" {
		return b.Name() + ".zip"
	}
	return b.Name() + ".tar.gz"
}

// programFile is the name of a program in its archive.
func programFile(b Binary) string {
	if b.OS == "windows" {
		return string(b.Program) + ".exe"
	}
	return string(b.Program)
}

// writeArchive writes the archive of a program for one platform. root is the checkout.
func (r Release) writeArchive(dir string, b Binary, program, root string) error {
	type file struct {
		name string
		mode os.FileMode
		data []byte
	}
	var files []file
	add := func(path string, name string, mode os.FileMode) error {
		data, err := os.ReadFile(path)
		files = append(files, file{name, mode, data})
		return err
	}
	err := errors.Join(add(filepath.Join(root, licence), licence, 0o644), add(program, programFile(b), 0o755))
	for _, other := range archived[b.Program] {
		err = errors.Join(err, add(filepath.Join(root, other), filepath.Base(other), 0o644))
	}
	if err != nil {
		return err
	}
	var content bytes.Buffer
	if b.OS == "windows" {
		archive := zip.NewWriter(&content)
		for _, f := range files {
			err = errors.Join(err, writeZipFile(archive, f.name, f.mode, f.data, r.Time))
		}
		err = errors.Join(err, archive.Close())
	} else {
		// Without a name and a time in its header.
		compressed := gzip.NewWriter(&content)
		archive := tar.NewWriter(compressed)
		for _, f := range files {
			err = errors.Join(err, writeTarFile(archive, f.name, int64(f.mode), f.data, r.Time))
		}
		err = errors.Join(err, archive.Close(), compressed.Close())
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, archiveFile(b)), content.Bytes(), 0o644)
}

// checkArchive reads the archive of a program.
func checkArchive(dir string, b Binary, all *binaries) error {
	name := archiveFile(b)
	read := readTarGz
	if b.OS == "windows" {
		read = readZip
	}
	var files []string
	err := read(filepath.Join(dir, name), func(file string, mode os.FileMode, content io.Reader) error {
		files = append(files, file)
		if !mode.IsRegular() {
			return fmt.Errorf("%s is not a file", file)
		}
		if file != programFile(b) {
			return nil
		}
		if mode.Perm()&0o111 == 0 {
			return fmt.Errorf("%s is not executable", file)
		}
		return all.add(b, name+": "+file, content)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	want := []string{licence, programFile(b)}
	for _, other := range archived[b.Program] {
		want = append(want, filepath.Base(other))
	}
	if !slices.Equal(files, want) {
		return fmt.Errorf("%s: it should have %v, and has %v", name, want, files)
	}
	return nil
}

func readTarGz(name string, file visit) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return readTar(f, name, file)
}

func readZip(name string, file visit) error {
	archive, err := zip.OpenReader(name)
	if err != nil {
		return err
	}
	defer archive.Close()
	for _, f := range archive.File {
		if clean(f.Name) != f.Name {
			return fmt.Errorf("%s is not a plain relative path", f.Name)
		}
		content, err := f.Open()
		if err != nil {
			return err
		}
		err = errors.Join(file(clean(f.Name), f.Mode(), content), content.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// krewManifest is the part of krew's manifests that is used here. krew's own module has the
// types, but depends on versions of the client libraries that do not go with ours.
type krewManifest struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Metadata   krewMetadata `json:"metadata"`
	Spec       krewSpec     `json:"spec"`
}

type krewMetadata struct {
	Name string `json:"name"`
}

type krewSpec struct {
	Version          string         `json:"version"`
	Homepage         string         `json:"homepage"`
	ShortDescription string         `json:"shortDescription"`
	Description      string         `json:"description"`
	Caveats          string         `json:"caveats"`
	Platforms        []krewPlatform `json:"platforms"`
}

type krewPlatform struct {
	Selector krewSelector `json:"selector"`
	URI      string       `json:"uri"`
	SHA256   string       `json:"sha256"`
	Bin      string       `json:"bin"`
}

type krewSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

// krew describes the plugin; sums are the checksums of the archives.
func (r Release) krew(sums map[string]string) krewManifest {
	m := krewManifest{
		APIVersion: "krew.googlecontainertools.github.com/v1alpha2",
		Kind:       "Plugin",
		Metadata:   krewMetadata{Name: "guard"},
		Spec: krewSpec{
			Version:          "v" + r.Version,
			Homepage:         "https://kubelet-guard.io",
			ShortDescription: "Show and release pods that Kubelet Guard holds",
			Description: "Shows which nodes run a guarded kubelet and which pods they hold, ends held pods\n" +
				"whose objects are gone, labels pods for protection, and rolls the guarded kubelet out.\n",
			Caveats: "Needs manifests-node.yaml of the same release in the cluster.\n",
		},
	}
	for _, platform := range pluginPlatforms {
		b := r.own(Plugin, platform)
		m.Spec.Platforms = append(m.Spec.Platforms, krewPlatform{
			Selector: krewSelector{map[string]string{"os": platform.OS, "arch": platform.Arch}},
			URI:      r.URL + "/" + archiveFile(b),
			SHA256:   sums[archiveFile(b)],
			Bin:      programFile(b),
		})
	}
	return m
}

// writeKrew writes the manifest of krew, from the archives in the folder.
func (r Release) writeKrew(dir string) error {
	sums := map[string]string{}
	for _, platform := range pluginPlatforms {
		name := archiveFile(r.own(Plugin, platform))
		sum, err := sha256Of(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		sums[name] = sum
	}
	data, err := yaml.Marshal(r.krew(sums))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, krewFile), data, 0o644)
}

// checkKrew compares the manifest of krew with the archives.
func checkKrew(dir string, r Release, sums map[string]string) error {
	data, err := os.ReadFile(filepath.Join(dir, krewFile))
	if err != nil {
		return err
	}
	var got krewManifest
	if err := yaml.UnmarshalStrict(data, &got); err != nil {
		return fmt.Errorf("%s: %w", krewFile, err)
	}
	want := r.krew(sums)
	for i := range min(len(got.Spec.Platforms), len(want.Spec.Platforms)) {
		if got, want := got.Spec.Platforms[i], want.Spec.Platforms[i]; !reflect.DeepEqual(got, want) {
			return fmt.Errorf("%s: spec.platforms[%d] is %v, and should be %v", krewFile, i, got, want)
		}
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%s: it does not describe this release's plugin", krewFile)
	}
	return nil
}
