package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blakesmith/ar"
	"github.com/sassoftware/go-rpmutils"
	"github.com/ulikunitz/xz"
)

// pack is one deb or rpm of the guarded kubelet.
type pack struct {
	file string
	// version and arch are those that the package names.
	version, arch string
	kubelet, unit Binary
}

// rpmArchitectures are rpm's names.
var rpmArchitectures = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// packages are named by nfpm (build/packages/nfpm.yaml).
func (r Release) packages() []pack {
	var all []pack
	for _, kube := range r.KubeVersions {
		version := strings.TrimPrefix(r.guarded(kube), "v")
		for _, arch := range architectures {
			kubelet, unit := r.kubelet(kube, arch), r.own(Unit, Platform{"linux", arch})
			all = append(all,
				pack{fmt.Sprintf("kubelet-guard_%s-1_%s.deb", version, arch), version + "-1", arch, kubelet, unit},
				pack{fmt.Sprintf("kubelet-guard-%s-1.%s.rpm", version, rpmArchitectures[arch]), version + "-1", rpmArchitectures[arch], kubelet, unit})
		}
	}
	return all
}

// Places of the binaries on a node.
const (
	packagedKubelet = "usr/bin/kubelet-guarded"
	packagedUnit    = "usr/sbin/kubelet-guard-unit"
)

// programMode is the mode of each program in packages and images.
const programMode os.FileMode = 0o755

// checkPackage reads a package as dpkg and rpm do: its name, version and architecture must be
// those of its file name, and its programs those of the release.
func checkPackage(dir string, p pack, all *binaries) error {
	f, err := os.Open(filepath.Join(dir, p.file))
	if err != nil {
		return err
	}
	defer f.Close()
	read := readDeb
	if path.Ext(p.file) == ".rpm" {
		read = readRpm
	}
	seen := map[string]bool{}
	name, version, arch, err := read(f, func(file string, mode os.FileMode, content io.Reader) error {
		b, known := map[string]Binary{packagedKubelet: p.kubelet, packagedUnit: p.unit}[file]
		if !known {
			if mode.IsRegular() && mode.Perm()&0o111 != 0 {
				return fmt.Errorf("%s is executable, and none of the release's programs", file)
			}
			return nil
		}
		if seen[file] {
			return fmt.Errorf("%s is there twice", file)
		}
		seen[file] = true
		if !mode.IsRegular() || mode.Perm() != programMode {
			return fmt.Errorf("%s has the mode %v, and should have %v", file, mode, programMode)
		}
		if err := all.add(b, p.file+": "+file, content); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", p.file, err)
	case name != "kubelet-guard" || version != p.version || arch != p.arch:
		return fmt.Errorf("%s: it is %s %s for %s, and should be kubelet-guard %s for %s", p.file, name, version, arch, p.version, p.arch)
	case len(seen) != 2:
		return fmt.Errorf("%s: it should have %s and %s", p.file, packagedKubelet, packagedUnit)
	}
	return nil
}

// visit is called for each file of a package, with a clean relative path.
type visit func(file string, mode os.FileMode, content io.Reader) error

// readDeb reads an archive of ar, with the control file and the files in two archives of tar.
func readDeb(r io.Reader, file visit) (name, version, arch string, err error) {
	archive := ar.NewReader(r)
	var members []string
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			if got, want := strings.Join(members, " "), "debian-binary control.tar data.tar"; got != want {
				return "", "", "", fmt.Errorf("it should have %s, and has %s", want, got)
			}
			return name, version, arch, nil
		}
		if err != nil {
			return "", "", "", err
		}
		member := strings.TrimSuffix(header.Name, "/")
		members = append(members, strings.TrimSuffix(strings.TrimSuffix(member, ".gz"), ".xz"))
		switch {
		case strings.HasPrefix(member, "control.tar"):
			err = readTar(archive, member, func(file string, _ os.FileMode, content io.Reader) error {
				if file != "control" {
					return nil
				}
				data, err := io.ReadAll(content)
				for line := range strings.Lines(string(data)) {
					field, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
					switch field {
					case "Package":
						name = value
					case "Version":
						version = value
					case "Architecture":
						arch = value
					}
				}
				return err
			})
		case strings.HasPrefix(member, "data.tar"):
			err = readTar(archive, member, file)
		}
		if err != nil {
			return "", "", "", fmt.Errorf("%s: %w", member, err)
		}
	}
}

// readTar reads an archive of tar, compressed as its name says, to the end: the checksum of the
// compression is there. A path must be relative and lead to no other folder.
func readTar(r io.Reader, name string, file visit) error {
	content, err := decompress(r, name)
	if err != nil {
		return err
	}
	archive := tar.NewReader(content)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return onlyZeros(content)
		}
		if err != nil {
			return err
		}
		name := clean(header.Name)
		switch {
		case strings.TrimSuffix(strings.TrimPrefix(header.Name, "./"), "/") != name:
			return fmt.Errorf("%s is not a plain relative path", header.Name)
		case header.Typeflag == tar.TypeLink:
			return fmt.Errorf("%s is a hard link", name)
		}
		if err := file(name, header.FileInfo().Mode(), archive); err != nil {
			return err
		}
	}
}

// onlyZeros reads what follows the last file of an archive of tar. Some programs would read more
// files there.
func onlyZeros(r io.Reader) error {
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Read(buffer)
		switch {
		case len(bytes.Trim(buffer[:n], "\x00")) > 0:
			return errors.New("data after the end of the archive")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func readRpm(r io.Reader, file visit) (name, version, arch string, err error) {
	rpm, err := rpmutils.ReadRpm(r)
	if err != nil {
		return "", "", "", err
	}
	nevra, err := rpm.Header.GetNEVRA()
	if err != nil {
		return "", "", "", err
	}
	payload, err := rpm.PayloadReaderExtended()
	if err != nil {
		return "", "", "", err
	}
	for {
		info, err := payload.Next()
		if errors.Is(err, io.EOF) {
			return nevra.Name, nevra.Version + "-" + nevra.Release, nevra.Arch, nil
		}
		if err != nil {
			return "", "", "", err
		}
		if payload.IsLink() {
			continue
		}
		mode := os.FileMode(info.Mode() & 0o777)
		// The type of a file, as stat has it.
		if info.Mode()&0o170000 != 0o100000 {
			mode |= os.ModeIrregular
		}
		if err := file(clean(info.Name()), mode, payload); err != nil {
			return "", "", "", err
		}
	}
}

// decompress returns the content of a file with the suffix of its compression.
func decompress(r io.Reader, name string) (io.Reader, error) {
	switch path.Ext(name) {
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		return xz.NewReader(r)
	case ".tar":
		return r, nil
	}
	return nil, fmt.Errorf("a compression that is not known: %s", name)
}

// clean returns a relative path without dots.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// sortedKeys returns the keys of a map in their order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
