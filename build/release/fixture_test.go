package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blakesmith/ar"
	"github.com/google/rpmpack"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"kubelet-guard.io/build"
)

// The release of the tests: real files but for the programs, which print a version and have no
// more than Go's runtime in them.
var testRelease = Release{
	Version:      build.Release,
	Commit:       "0123456789abcdef0123456789abcdef01234567",
	Time:         time.Unix(1767225600, 0).UTC(),
	GoVersion:    runtime.Version(),
	KubeVersions: []string{"v1.36.3"},
	Registry:     "registry.example/kubelet-guard",
	URL:          "https://releases.example/" + build.Release,
}

// ofTwoVersions is the same for one more upstream version.
func ofTwoVersions() Release {
	r := testRelease
	r.KubeVersions = []string{"v1.35.4", "v1.36.3"}
	return r
}

// testBuilder made a release.
func testBuilder(r Release) builder {
	b := builder{id: "https://ci.example"}
	for _, kube := range r.KubeVersions {
		b.upstreams = append(b.upstreams, build.Upstream{Module: "k8s.io/kubernetes", Version: kube, Sum: "h1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="})
	}
	return b
}

// programs builds the programs of the tests, once.
var programs = sync.OnceValues(func() (map[Binary]string, error) {
	dir, err := os.MkdirTemp("", "release-programs-*")
	if err != nil {
		return nil, err
	}
	programsDir = dir
	built := map[Binary]string{}
	for _, b := range ofTwoVersions().Binaries() {
		if built[b], err = program(dir, b, b.Platform, testRelease.reported(b), testRelease.reported(b)); err != nil {
			return nil, err
		}
	}
	return built, nil
})

var programsDir string

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(programsDir)
	os.Exit(code)
}

// program builds a program in a module of the right name, with a dependency: it contains one
// text and prints another, which may be the same.
func program(dir string, b Binary, on Platform, contains, prints string) (string, error) {
	work, err := os.MkdirTemp(dir, "program-*")
	if err != nil {
		return "", err
	}
	module := build.ModulePath
	if b.Program == Kubelet {
		module, prints = "k8s.io/kubernetes", "Kubernetes "+prints
	}
	folder := strings.TrimPrefix(sources[b.Program], module+"/")
	for name, content := range map[string]string{
		"go.mod":            "module " + module + "\n\ngo 1.24\n\nrequire example.test/dependency v1.0.0\n\nreplace example.test/dependency => ./dependency\n",
		"dependency/go.mod": "module example.test/dependency\n\ngo 1.24\n",
		"dependency/d.go":   "// Package dependency has what a program prints.\npackage dependency\n\n// Text is printed.\nvar Text = " + fmt.Sprintf("%q", prints) + "\n",
		folder + "/main.go": "package main\n\nimport \"example.test/dependency\"\n\nvar contains = " + fmt.Sprintf("%q", contains) +
			"\n\nfunc main() {\n\tprintln(dependency.Text)\n\tif dependency.Text == \"\" {\n\t\tprintln(contains)\n\t}\n}\n",
	} {
		file := filepath.Join(work, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	result := filepath.Join(work, programFile(b))
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", result, "./"+folder)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOOS="+on.OS, "GOARCH="+on.Arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build for %v: %w: %s", on, err, out)
	}
	return result, nil
}

// fakeSBOM is a bill of materials with what is checked.
func fakeSBOM(_ context.Context, b Binary, file string) ([]byte, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, err
	}
	sum, err := sha256Of(file)
	if err != nil {
		return nil, err
	}
	made := bom{Format: "CycloneDX", Metadata: bomMetadata{
		Component: component{info.Main.Path, b.Version}, Properties: []property{{hashProperty, sum}},
	}, Components: []component{{"std", info.GoVersion}}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		made.Components = append(made.Components, component{m.Path, m.Version})
	}
	return json.Marshal(made)
}

// packFile is a file of a package.
type packFile struct {
	name string
	mode int64
	data []byte
}

// packFiles are those of a real package, as far as they are checked.
func packFiles(p pack, files map[Binary]string) ([]packFile, error) {
	kubelet, err := os.ReadFile(files[p.kubelet])
	if err != nil {
		return nil, err
	}
	unit, err := os.ReadFile(files[p.unit])
	return []packFile{
		{packagedKubelet, 0o755, kubelet}, {packagedUnit, 0o755, unit},
		{"etc/kubernetes/kubelet-guard.yaml", 0o644, []byte("mode: Audit\n")},
	}, err
}

func makeDeb(p pack, files []packFile) ([]byte, error) {
	control := fmt.Sprintf("Package: kubelet-guard\nVersion: %s\nArchitecture: %s\n", p.version, p.arch)
	// As nfpm does: the control files are always in gzip.
	controlTar, err := makeTar([]packFile{{"./control", 0o644, []byte(control)}}, ".gz")
	if err != nil {
		return nil, err
	}
	for i := range files {
		files[i].name = "./" + files[i].name
	}
	suffix := ""
	if p.slow() {
		suffix = ".xz"
	}
	dataTar, err := makeTar(files, suffix)
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	archive := ar.NewWriter(&content)
	if err := archive.WriteGlobalHeader(); err != nil {
		return nil, err
	}
	for _, member := range []packFile{{"debian-binary", 0o644, []byte("2.0\n")}, {"control.tar.gz", 0o644, controlTar}, {"data.tar" + suffix, 0o644, dataTar}} {
		if err := archive.WriteHeader(&ar.Header{Name: member.name, Mode: member.mode, Size: int64(len(member.data)), ModTime: testRelease.Time}); err != nil {
			return nil, err
		}
		if _, err := archive.Write(member.data); err != nil {
			return nil, err
		}
	}
	return content.Bytes(), nil
}

func makeTar(files []packFile, suffix string) ([]byte, error) {
	var content bytes.Buffer
	archive := tar.NewWriter(&content)
	var compressed io.WriteCloser
	switch suffix {
	case ".gz":
		compressed = gzip.NewWriter(&content)
	case ".xz":
		var err error
		if compressed, err = xz.NewWriter(&content); err != nil {
			return nil, err
		}
	}
	if compressed != nil {
		archive = tar.NewWriter(compressed)
	}
	for _, f := range files {
		if err := writeTarFile(archive, f.name, f.mode, f.data, testRelease.Time); err != nil {
			return nil, err
		}
	}
	err := archive.Close()
	if compressed != nil {
		err = errors.Join(err, compressed.Close())
	}
	return content.Bytes(), err
}

// slow reports whether a package is compressed with xz, as all real ones are. The others are
// not, because that would take most of the time of these tests.
func (p pack) slow() bool { return p.file == testRelease.packages()[0].file }

func makeRpm(p pack, files []packFile) ([]byte, error) {
	version, release, _ := strings.Cut(p.version, "-")
	rpm, err := rpmpack.NewRPM(rpmpack.RPMMetaData{
		Name: "kubelet-guard", Version: version, Release: release, Arch: p.arch, OS: "linux", Compressor: "gzip:1", BuildTime: testRelease.Time, BuildHost: "localhost",
	})
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		rpm.AddFile(rpmpack.RPMFile{Name: "/" + f.name, Mode: uint(0o100000 | f.mode), Body: f.data, MTime: uint32(testRelease.Time.Unix())})
	}
	var content bytes.Buffer
	err = rpm.Write(&content)
	return content.Bytes(), err
}

// packages are those that were made, by what they were made from: compression takes long.
var packages = map[string][]byte{}

func makePackage(p pack, files []packFile) (data []byte, err error) {
	key := fmt.Sprint(p)
	for _, f := range files {
		key += fmt.Sprintf(" %s %o %x", f.name, f.mode, sha256.Sum256(f.data))
	}
	if data, made := packages[key]; made {
		return data, nil
	}
	if filepath.Ext(p.file) == ".rpm" {
		data, err = makeRpm(p, files)
	} else {
		data, err = makeDeb(p, files)
	}
	packages[key] = data
	return data, err
}

// testInputs are the inputs of a folder with these programs.
func testInputs(t *testing.T, r Release, files map[Binary]string) inputs {
	t.Helper()
	repo, err := build.FindRepo(".")
	require.NoError(t, err)
	in := inputs{root: repo.Root, binaries: files, packages: map[string]string{}, sbom: fakeSBOM, builder: testBuilder(r)}
	dir := t.TempDir()
	for _, kube := range r.KubeVersions {
		in.packages[kube] = dir
	}
	for _, p := range r.packages() {
		content, err := packFiles(p, files)
		require.NoError(t, err)
		data, err := makePackage(p, content)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, p.file), data, 0o644))
	}
	return in
}

// assembled makes a folder with these programs.
func assembled(t *testing.T, r Release, files map[Binary]string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, r.assemble(t.Context(), dir, testInputs(t, r, files)))
	return dir
}

// testPrograms are the right programs.
func testPrograms(t *testing.T) map[Binary]string {
	t.Helper()
	files, err := programs()
	require.NoError(t, err)
	return files
}

// copyFolder copies a folder with links: a test replaces files, and does not write to them.
func copyFolder(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	entries, err := os.ReadDir(from)
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())))
	}
	return to
}

// damaged is a folder that a test changes.
type damaged struct {
	t   *testing.T
	dir string
}

func (d damaged) read(name string) []byte {
	d.t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	require.NoError(d.t, err)
	return data
}

func (d damaged) write(name string, data []byte) {
	d.t.Helper()
	d.remove(name)
	require.NoError(d.t, os.WriteFile(filepath.Join(d.dir, name), data, 0o755))
}

func (d damaged) remove(name string) {
	d.t.Helper()
	require.NoError(d.t, os.RemoveAll(filepath.Join(d.dir, name)))
}

// flip changes a byte in the middle of a file.
func (d damaged) flip(name string) {
	d.t.Helper()
	data := d.read(name)
	data[len(data)/2] ^= 1
	d.write(name, data)
}

// truncate removes the last bytes of a file.
func (d damaged) truncate(name string, bytes int) {
	d.t.Helper()
	data := d.read(name)
	d.write(name, data[:len(data)-bytes])
}

// swap exchanges two files.
func (d damaged) swap(a, b string) {
	d.t.Helper()
	first, second := d.read(a), d.read(b)
	d.write(a, second)
	d.write(b, first)
}

// edit replaces a text, which must be there.
func (d damaged) edit(name, old, new string) {
	d.t.Helper()
	data := string(d.read(name))
	require.Contains(d.t, data, old)
	d.write(name, []byte(strings.Replace(data, old, new, 1)))
}

// repack replaces a package by one with other files or another description.
func (d damaged) repack(p pack, change func(p *pack, files []packFile) []packFile) {
	d.t.Helper()
	files, err := packFiles(p, testPrograms(d.t))
	require.NoError(d.t, err)
	files = change(&p, files)
	data, err := makePackage(p, files)
	require.NoError(d.t, err)
	d.write(p.file, data)
}

// seal writes statement and checksums of the files as they are, so that what is wrong is in the
// files alone.
func (d damaged) seal() {
	d.t.Helper()
	entries, err := os.ReadDir(d.dir)
	require.NoError(d.t, err)
	files := []string{provenanceFile}
	var others []string
	for _, e := range entries {
		if name := e.Name(); name != provenanceFile && name != checksumsFile {
			files, others = append(files, name), append(others, name)
		}
	}
	d.remove(provenanceFile)
	d.remove(checksumsFile)
	require.NoError(d.t, testRelease.writeProvenance(d.dir, others, testBuilder(testRelease)))
	require.NoError(d.t, writeChecksums(d.dir, files))
}

func (d damaged) verify() error { return Verify(d.t.Context(), d.dir, "", io.Discard) }
