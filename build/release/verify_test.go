package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/build"
)

const (
	guardVersion     = build.Release
	kubeletFile      = "kubelet-v1.36.3+guard." + guardVersion + "-linux-arm64"
	kubeletFileAMD64 = "kubelet-v1.36.3+guard." + guardVersion + "-linux-amd64"
	webhookFile      = "guard-webhook-" + guardVersion + ".oci.tar"
	pluginFile       = "kubectl-guard-" + guardVersion + "-darwin-arm64.tar.gz"
	windowsFile      = "kubectl-guard-" + guardVersion + "-windows-amd64.zip"
	etcdFile         = "guard-etcd-" + guardVersion + "-linux-arm64.tar.gz"
	sbomFile         = "guard-webhook-" + guardVersion + "-linux-amd64.cdx.json"
)

func TestAReleaseIsValid(t *testing.T) {
	r := ofTwoVersions()
	dir := assembled(t, r, testPrograms(t))
	var out bytes.Buffer
	require.NoError(t, Verify(t.Context(), dir, "", &out))
	assert.Contains(t, out.String(), "release "+guardVersion+" for Kubernetes [v1.35.4 v1.36.3], commit 0123456789abcdef0123456789abcdef01234567")
	assert.Contains(t, out.String(), "Signatures were not verified")

	check := exec.Command("sha256sum", "--check", "--strict", "--quiet", checksumsFile)
	check.Dir = dir
	text, err := check.CombinedOutput()
	assert.NoError(t, err, string(text))

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := append(r.Files(), checksumsFile)
	slices.Sort(want)
	assert.Equal(t, want, names)
}

func TestTwoRunsGiveTheSameBytes(t *testing.T) {
	files := testPrograms(t)
	first, second := assembled(t, testRelease, files), assembled(t, testRelease, files)
	for _, name := range append(testRelease.Files(), checksumsFile) {
		a, err := os.ReadFile(filepath.Join(first, name))
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(second, name))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(a, b), name)
	}
}

// Each damage leaves checksums and statement right, unless it is of these: a check of its own
// must find it.
func TestADamagedFolderIsRefused(t *testing.T) {
	whole := assembled(t, testRelease, testPrograms(t))
	r := testRelease
	deb, rpm, arm := r.packages()[0], r.packages()[1], r.packages()[2]
	webhook := r.images()[0]
	for name, c := range map[string]struct {
		damage func(d damaged)
		seal   bool
		want   string
	}{
		// Nothing else would find this one.
		"a changed byte":              {func(d damaged) { d.edit("manifests-node.yaml", "get", "put") }, false, "manifests-node.yaml: SHA-256 "},
		"a changed byte of a kubelet": {func(d damaged) { d.flip(kubeletFile) }, false, kubeletFile + ": SHA-256 "},
		"an edited checksum": {func(d damaged) {
			sum, err := sha256Of(filepath.Join(d.dir, kubeletFile))
			require.NoError(d.t, err)
			d.edit(checksumsFile, sum, strings.Repeat("0", 64))
		}, false, ", in SHA256SUMS 000"},
		"a truncated list of checksums": {func(d damaged) {
			lines := strings.SplitAfter(string(d.read(checksumsFile)), "\n")
			d.write(checksumsFile, []byte(strings.Join(lines[:len(lines)-2], "")))
		}, false, "release-notes.md: not in SHA256SUMS"},
		"a link out of the folder": {func(d damaged) {
			outside := filepath.Join(d.t.TempDir(), krewFile)
			require.NoError(d.t, os.Rename(filepath.Join(d.dir, krewFile), outside))
			require.NoError(d.t, os.Symlink(outside, filepath.Join(d.dir, krewFile)))
		}, false, "guard.yaml: not a file, but L"},
		"a folder in it":              {func(d damaged) { require.NoError(d.t, os.Mkdir(filepath.Join(d.dir, "bin"), 0o755)) }, false, "bin: not a file, but d"},
		"a missing file":              {func(d damaged) { d.remove(kubeletFile) }, false, kubeletFile + ": it is missing"},
		"a missing file, not listed":  {func(d damaged) { d.remove(krewFile) }, true, krewFile + ": it is missing"},
		"another file":                {func(d damaged) { d.write("install.sh", nil) }, false, "install.sh: not in SHA256SUMS"},
		"another file, listed":        {func(d damaged) { d.write("install.sh", nil) }, true, "install.sh: not a file of release " + guardVersion},
		"no checksums":                {func(d damaged) { d.remove(checksumsFile) }, false, "SHA256SUMS: no such file"},
		"a checksum of another place": {func(d damaged) { d.edit(checksumsFile, "  guard.yaml", "  ../guard.yaml") }, false, "SHA256SUMS: line "},
		"a checksum twice": {func(d damaged) {
			data := d.read(checksumsFile)
			d.write(checksumsFile, append(data, data...))
		}, false, "is listed twice"},

		"no statement":               {func(d damaged) { d.remove(provenanceFile); d.list() }, false, "provenance.json: open"},
		"a statement of other files": {func(d damaged) { d.edit(provenanceFile, `"name": "guard.yaml"`, `"name": "other.yaml"`); d.list() }, false, "provenance.json: no subject for guard.yaml"},
		"a statement of other bytes": {func(d damaged) {
			sum, err := sha256Of(filepath.Join(d.dir, krewFile))
			require.NoError(d.t, err)
			d.edit(provenanceFile, sum, strings.Repeat("0", 64))
			d.list()
		}, false, "provenance.json: the subject guard.yaml has SHA-256 000"},
		"a statement of another kind": {func(d damaged) { d.edit(provenanceFile, buildType, "https://example.com/build"); d.list() }, false, "provenance.json: the build is of type https://example.com/build"},
		"a statement of another release": {func(d damaged) {
			d.edit(provenanceFile, `"release": "`+guardVersion+`"`, `"release": "9.9.9"`)
			d.list()
		}, false, ": not a file of release 9.9.9"},
		"a statement of another commit": {func(d damaged) {
			d.edit(provenanceFile, `"gitCommit": "0123`, `"gitCommit": "3210`)
			d.list()
		}, false, webhookFile + ": amd64: its settings are"},
		"a statement of another version of Go": {func(d damaged) {
			d.edit(provenanceFile, `"goVersion": "go1.`, `"goVersion": "go0.`)
			d.list()
		}, false, kubeletFile + ": it is by " + runtime.Version() + ", and should be by go0."},
		"a statement of other sources": {func(d damaged) {
			d.edit(provenanceFile, "k8s.io/kubernetes@v1.36.3", "k8s.io/kubernetes@v1.36.2")
			d.list()
		}, false, "provenance.json: the sources of kubelets are of [v1.36.2], and should be of [v1.36.3]"},
		"a statement of a path": {func(d damaged) {
			d.edit(provenanceFile, `"release": "`+guardVersion+`"`, `"release": "../9"`)
			d.list()
		}, false, `provenance.json: release "../9" is not a version`},
		"a statement that is not one": {func(d damaged) { d.write(provenanceFile, []byte("{}")); d.list() }, false, "provenance.json: "},

		"a changed byte of a kubelet, listed": {func(d damaged) { d.flip(kubeletFile) }, true,
			arm.file + ": data.tar: usr/bin/kubelet-guarded: another binary than in " + kubeletFile},
		"kubelets of swapped architectures": {func(d damaged) { d.swap(kubeletFile, kubeletFileAMD64) }, true,
			arm.file + ": data.tar: usr/bin/kubelet-guarded: another binary than in " + kubeletFile},
		"another kubelet": {func(d damaged) {
			d.write(kubeletFile, d.read(kubeletFileAMD64))
		}, true, arm.file + ": data.tar: usr/bin/kubelet-guarded: another binary than in " + kubeletFile},
		"another kubelet in the deb": {func(d damaged) {
			d.repack(deb, func(_ *pack, files []packFile) []packFile { files[0].data = []byte("kubelet"); return files })
		}, true, deb.file + ": data.tar.xz: usr/bin/kubelet-guarded: another binary than in kubelet-v1.36.3+guard." + guardVersion + "-linux-amd64"},
		"another kubelet in the rpm": {func(d damaged) {
			d.repack(rpm, func(_ *pack, files []packFile) []packFile { files[0].data = []byte("kubelet"); return files })
		}, true, rpm.file + ": usr/bin/kubelet-guarded: another binary than in kubelet-v1.36.3"},
		"a deb of another version": {func(d damaged) {
			d.repack(deb, func(p *pack, files []packFile) []packFile { p.version = "1.36.2-1"; return files })
		}, true, deb.file + ": it is kubelet-guard 1.36.2-1 for amd64, and should be"},
		"an rpm for another architecture": {func(d damaged) {
			d.repack(rpm, func(p *pack, files []packFile) []packFile { p.arch = "aarch64"; return files })
		}, true, rpm.file + ": it is kubelet-guard 1.36.3+guard." + guardVersion + "-1 for aarch64, and should be"},
		"a deb with one more program": {func(d damaged) {
			d.repack(deb, func(_ *pack, files []packFile) []packFile {
				return append(files, packFile{"usr/bin/other", 0o755, nil})
			})
		}, true, deb.file + ": data.tar.xz: usr/bin/other is executable"},
		"an rpm with one more program": {func(d damaged) {
			d.repack(rpm, func(_ *pack, files []packFile) []packFile {
				return append(files, packFile{"usr/bin/other", 0o755, nil})
			})
		}, true, rpm.file + ": usr/bin/other is executable"},
		"an rpm with one program less": {func(d damaged) {
			d.repack(rpm, func(_ *pack, files []packFile) []packFile { return slices.Delete(files, 1, 2) })
		}, true, rpm.file + ": it should have usr/bin/kubelet-guarded and usr/sbin/kubelet-guard-unit"},
		"a deb with a kubelet that cannot run": {func(d damaged) {
			d.repack(deb, func(_ *pack, files []packFile) []packFile { files[0].mode = 0o644; return files })
		}, true, deb.file + ": data.tar.xz: usr/bin/kubelet-guarded has the mode -rw-r--r--, and should have -rwxr-xr-x"},
		"an rpm with a kubelet that cannot run": {func(d damaged) {
			d.repack(rpm, func(_ *pack, files []packFile) []packFile { files[0].mode = 0o644; return files })
		}, true, rpm.file + ": usr/bin/kubelet-guarded has the mode -rw-r--r--, and should have -rwxr-xr-x"},
		"a deb with more files after the first": {func(d damaged) {
			more, err := makeTar([]packFile{{"./usr/bin/other", 0o644, nil}}, "")
			require.NoError(d.t, err)
			d.write(arm.file, append(d.read(arm.file), more...))
		}, true, arm.file + ": "},
		"a deb with two archives of files": {func(d damaged) {
			data := d.read(arm.file)
			d.write(arm.file, append(data, data[8:]...))
		}, true, arm.file + ": data.tar: usr/bin/kubelet-guarded is there twice"},
		"a deb with one more member": {func(d damaged) {
			d.write(arm.file, append(d.read(arm.file), fmt.Sprintf("%-16s%-12s%-6s%-6s%-8s%-10d`\n", "_other", "0", "0", "0", "100644", 0)...))
		}, true, arm.file + ": it should have debian-binary control.tar data.tar, and has debian-binary control.tar data.tar _other"},
		"a truncated deb":     {func(d damaged) { d.truncate(deb.file, 100) }, true, deb.file + ": data.tar.xz: "},
		"a truncated rpm":     {func(d damaged) { d.truncate(rpm.file, 100) }, true, rpm.file + ": "},
		"a deb that is none":  {func(d damaged) { d.write(deb.file, []byte("deb")) }, true, deb.file + ": "},
		"an rpm that is none": {func(d damaged) { d.write(rpm.file, []byte("rpm")) }, true, rpm.file + ": "},

		"an image with another program": {func(d damaged) {
			files := maps.Clone(testPrograms(d.t))
			b := r.own(Webhook, Platform{"linux", "amd64"})
			files[b] = files[r.own(Installer, Platform{"linux", "amd64"})]
			d.image(webhook, files)
		}, true, webhookFile + ": /guard-webhook: it is kubelet-guard.io/cmd/guard-installer, and should be kubelet-guard.io/cmd/guard-webhook"},
		"an image with another kubelet": {func(d damaged) {
			files := maps.Clone(testPrograms(d.t))
			files[r.kubelet("v1.36.3", "amd64")] = files[r.kubelet("v1.36.3", "arm64")]
			d.image(r.images()[1], files)
		}, true, "guard-installer-1.36.3-guard." + guardVersion + ".oci.tar: amd64: /kubelet: another binary than in kubelet-v1.36.3"},
		"an image with one more program": {func(d damaged) {
			i := webhook
			i.programs = func(arch string) map[string]Binary {
				return map[string]Binary{"guard-webhook": r.own(Webhook, Platform{"linux", arch}), "sh": r.own(Unit, Platform{"linux", arch})}
			}
			d.image(i, testPrograms(d.t))
		}, true, webhookFile + ": amd64: /sh should not be there"},
		"an image without its program": {func(d damaged) {
			i := webhook
			i.programs = func(string) map[string]Binary { return nil }
			d.image(i, testPrograms(d.t))
		}, true, webhookFile + ": amd64: it should have [guard-webhook], and has []"},
		"an image of root": {func(d damaged) {
			i := webhook
			i.config.User = "0:0"
			d.image(i, testPrograms(d.t))
		}, true, webhookFile + ": amd64: its settings are"},
		"an image with another command": {func(d damaged) {
			i := webhook
			i.config.Entrypoint = []string{"/bin/sh"}
			d.image(i, testPrograms(d.t))
		}, true, webhookFile + ": amd64: its settings are"},
		"an image with a volume": {func(d damaged) {
			i := webhook
			i.config.Volumes = map[string]struct{}{"/tls": {}}
			d.image(i, testPrograms(d.t))
		}, true, webhookFile + ": amd64: its settings are"},
		"an image of another name": {func(d damaged) {
			i := webhook
			i.name = "registry.example/other"
			d.image(i, testPrograms(d.t))
		}, true, webhookFile + ": it should have one image, named registry.example/kubelet-guard/webhook:" + guardVersion},
		"an image for one architecture": {func(d damaged) {
			defer func(all []string) { architectures = all }(architectures)
			architectures = architectures[:1]
			d.image(webhook, testPrograms(d.t))
		}, true, webhookFile + ": it is for [amd64], and should be for [amd64 arm64]"},
		"an image with a damaged blob": {func(d damaged) {
			d.edit(webhookFile, `"User":"65532:65532"`, `"User":"65532:65533"`)
		}, true, webhookFile + ": "},
		"an image with one more blob": {func(d damaged) {
			folder := d.t.TempDir()
			require.NoError(d.t, extractTar(filepath.Join(d.dir, webhookFile), folder))
			require.NoError(d.t, os.WriteFile(filepath.Join(folder, "blobs", "sha256", strings.Repeat("0", 64)), nil, 0o644))
			d.remove(webhookFile)
			require.NoError(d.t, writeTar(filepath.Join(d.dir, webhookFile), os.DirFS(folder), r.Time))
		}, true, webhookFile + ": blobs/sha256/" + strings.Repeat("0", 64) + " should not be there"},
		"an image with one more layer": {func(d damaged) {
			d.layers(webhook, func(img v1.Image) (v1.Image, error) {
				layers, err := img.Layers()
				require.NoError(d.t, err)
				return mutate.AppendLayers(img, layers...)
			})
		}, true, webhookFile + ": amd64: it should have one layer, and has 2"},
		"an image with Docker's list of another one": {func(d damaged) {
			folder := d.t.TempDir()
			require.NoError(d.t, extractTar(filepath.Join(d.dir, webhookFile), folder))
			require.NoError(d.t, os.WriteFile(filepath.Join(folder, "manifest.json"), []byte("[]"), 0o644))
			d.remove(webhookFile)
			require.NoError(d.t, writeTar(filepath.Join(d.dir, webhookFile), os.DirFS(folder), r.Time))
		}, true, webhookFile + ": manifest.json should not be there"},
		"an image with another tag for skopeo": {func(d damaged) {
			d.edit(webhookFile, `"org.opencontainers.image.ref.name": "`+guardVersion+`"`, `"org.opencontainers.image.ref.name": "`+strings.Repeat("9", len(guardVersion))+`"`)
		}, true, webhookFile + ": it should have one image, named"},
		"an image of another commit": {func(d damaged) {
			other := r
			other.Commit = strings.Repeat("0", 40)
			d.remove(webhookFile)
			require.NoError(d.t, other.writeImage(d.dir, webhook, testPrograms(d.t)))
		}, true, webhookFile + ": amd64: its settings are"},
		"an image with a truncated layer":         {func(d damaged) { d.truncate(webhookFile, len(d.read(webhookFile))/2) }, true, webhookFile + ": "},
		"an image without the end of its archive": {func(d damaged) { d.truncate(webhookFile, 2048) }, true, webhookFile + ": "},
		"an image with data after its archive": {func(d damaged) {
			d.write(webhookFile, append(d.read(webhookFile), d.read(webhookFile)...))
		}, true, webhookFile + ": data after the end of the archive"},
		"an image that is none": {func(d damaged) { d.write(webhookFile, []byte("image")) }, true, webhookFile + ": "},

		"another plugin": {func(d damaged) { d.plugin(pluginFile, 0o755, "kubectl-guard") }, true, "kubectl-guard-" + guardVersion + "-darwin-arm64.cdx.json: it is of a binary with SHA-256"},
		"a plugin that is not executable": {func(d damaged) { d.plugin(pluginFile, 0o644, "kubectl-guard") }, true,
			pluginFile + ": kubectl-guard is not executable"},
		"a plugin with one more file": {func(d damaged) { d.plugin(pluginFile, 0o755, "kubectl-guard", "other") }, true,
			pluginFile + ": it should have [LICENSE kubectl-guard], and has [LICENSE kubectl-guard other]"},
		"a plugin without the end of its archive": {func(d damaged) { d.truncate(pluginFile, 8); d.describe() }, true, pluginFile + ": unexpected EOF"},
		"a plugin with data after its archive": {func(d damaged) {
			d.write(pluginFile, append(d.read(pluginFile), d.read(pluginFile)...))
			d.describe()
		}, true, pluginFile + ": data after the end of the archive"},
		"a plugin that leaves its folder": {func(d damaged) { d.plugin(pluginFile, 0o755, "../kubectl-guard") }, true,
			pluginFile + ": ../kubectl-guard is not a plain relative path"},
		"a licence that is a hard link":     {func(d damaged) { d.linkLicence(tar.TypeLink) }, true, pluginFile + ": LICENSE is a hard link"},
		"a licence that is a symbolic link": {func(d damaged) { d.linkLicence(tar.TypeSymlink) }, true, pluginFile + ": LICENSE is not a file"},
		"another guard-etcd": {func(d damaged) {
			d.plugin(etcdFile, 0o755, "guard-etcd", "guard-etcd-save.service", "guard-etcd-save.timer")
		}, true, etcdFile + ": another binary than in guard-etcd-" + guardVersion + ".oci.tar: /guard-etcd"},
		"guard-etcd without its units": {func(d damaged) {
			defer func(units []string) { archived[Etcd] = units }(archived[Etcd])
			archived[Etcd] = nil
			b := r.own(Etcd, Platform{"linux", "arm64"})
			d.remove(etcdFile)
			require.NoError(d.t, r.writeArchive(d.dir, b, testPrograms(d.t)[b], filepath.Join("..", "..")))
		}, true,
			etcdFile + ": it should have [LICENSE guard-etcd guard-etcd-save.service guard-etcd-save.timer], and has [LICENSE guard-etcd]"},
		"an image of guard-etcd with another user": {func(d damaged) {
			i := r.images()[len(r.images())-1]
			i.config.User = "65532:65532"
			d.image(i, testPrograms(d.t))
		}, true, "guard-etcd-" + guardVersion + ".oci.tar: amd64: its settings are"},
		"data protection with another image": {func(d damaged) {
			d.edit("manifests-data-protection.yaml", "kubelet-guard/guard-etcd:"+guardVersion, "kubelet-guard/guard-etcd:latest")
		}, true, "manifests-data-protection.yaml: it has the images [registry.example/kubelet-guard/guard-etcd:latest], and should have [registry.example/kubelet-guard/guard-etcd:" + guardVersion + "]"},
		"a truncated plugin for Windows": {func(d damaged) { d.truncate(windowsFile, 100); d.describe() }, true, windowsFile + ": "},
		"an archive that is none": {func(d damaged) {
			d.write(windowsFile, []byte("zip"))
			d.describe()
		}, true, windowsFile + ": "},

		"materials of another binary": {func(d damaged) {
			d.bom(func(b *bom) { b.Metadata.Properties[0].Value = strings.Repeat("0", 64) })
		}, true, sbomFile + ": it is of a binary with SHA-256 000"},
		"materials of two swapped binaries": {func(d damaged) { d.swap(sbomFile, strings.Replace(sbomFile, "amd64", "arm64", 1)) }, true,
			sbomFile + ": it is of a binary with SHA-256 "},
		"materials without a module": {func(d damaged) {
			d.bom(func(b *bom) { b.Components = b.Components[:1] })
		}, true, sbomFile + ": module ./dependency (devel) of the binary is missing"},
		"materials with one more module": {func(d damaged) {
			d.bom(func(b *bom) { b.Components = append(b.Components, component{"example.test/other", "v1.0.0"}) })
		}, true, sbomFile + ": module example.test/other v1.0.0 is not in the binary"},
		"materials of another version": {func(d damaged) {
			d.bom(func(b *bom) { b.Metadata.Component.Version = "9.9.9" })
		}, true, sbomFile + ": it is of {kubelet-guard.io 9.9.9}, and should be of {kubelet-guard.io " + guardVersion + "}"},
		"materials that are none": {func(d damaged) { d.write(sbomFile, []byte("{}")) }, true, sbomFile + ": not a bill of materials of CycloneDX"},

		"a manifest of krew with another checksum": {func(d damaged) {
			sum, err := sha256Of(filepath.Join(d.dir, pluginFile))
			require.NoError(d.t, err)
			d.edit(krewFile, sum, strings.Repeat("0", 64))
		}, true, "guard.yaml: spec.platforms[1] is"},
		"a manifest of krew with another address": {func(d damaged) { d.edit(krewFile, "https://releases.example/", "https://elsewhere.example/") }, true,
			"guard.yaml: spec.platforms[0] is"},
		"a manifest of krew of another version": {func(d damaged) { d.edit(krewFile, "version: v"+guardVersion, "version: v9.9.9") }, true,
			"guard.yaml: it does not describe this release's plugin"},
		"manifests with another image": {func(d damaged) {
			d.edit("manifests-control-plane-audit.yaml", "kubelet-guard/webhook:"+guardVersion, "kubelet-guard/webhook:latest")
		}, true, "manifests-control-plane-audit.yaml: it has the images [registry.example/kubelet-guard/webhook:latest], and should have [registry.example/kubelet-guard/webhook:" + guardVersion + "]"},
		"manifests with one more image": {func(d damaged) {
			d.write("manifests-node.yaml", append(d.read("manifests-node.yaml"), `---
kind: DaemonSet
spec: {template: {spec: {initContainers: [{image: registry.example/other}]}}}
`...))
		}, true, "manifests-node.yaml: it has the images [registry.example/other], and should have []"},
		"manifests without objects": {func(d damaged) { d.write("manifests-rollout.yaml", nil) }, true, "manifests-rollout.yaml: it has no objects"},
		"notes of another release": {func(d damaged) { d.edit(notesFile, "# Kubelet Guard "+guardVersion, "# Kubelet Guard 9.9.9") }, true,
			"release-notes.md: not those of release " + guardVersion},
	} {
		t.Run(name, func(t *testing.T) {
			d := damaged{t, copyFolder(t, whole)}
			c.damage(d)
			if c.seal {
				d.seal()
			}
			assert.ErrorContains(t, d.verify(), c.want)
		})
	}
	// What the tests above copied was not changed by one of them.
	require.NoError(t, damaged{t, whole}.verify())
}

// A folder that is right in itself, with a binary that is not what its name says.
func TestAWrongBinaryIsRefused(t *testing.T) {
	own := testRelease.kubelet("v1.36.3", runtime.GOARCH)
	other := architectures[0]
	if other == own.Arch {
		other = architectures[1]
	}
	for name, c := range map[string]struct {
		contains, prints string
		arch             string
		want             string
	}{
		"of another version":       {"v1.36.3+guard.9.9.9", "v1.36.3+guard.9.9.9", own.Arch, "it does not contain its version, \"v1.36.3+guard." + guardVersion + "\""},
		"reports another version":  {own.Version, "v1.36.3+guard.9.9.9", own.Arch, "it reports \"Kubernetes v1.36.3+guard.9.9.9\", and should report the version"},
		"for another architecture": {own.Version, own.Version, other, "it is for linux/" + other + ", and should be for linux/" + own.Arch},
	} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(testPrograms(t))
			var err error
			files[own], err = program(programsDir, own, Platform{"linux", c.arch}, c.contains, c.prints)
			require.NoError(t, err)
			err = Verify(t.Context(), assembled(t, testRelease, files), "", io.Discard)
			assert.ErrorContains(t, err, own.Name()+": "+c.want)
		})
	}
}

// list writes the checksums again, after a change of the statement.
func (d damaged) list() {
	d.t.Helper()
	entries, err := os.ReadDir(d.dir)
	require.NoError(d.t, err)
	var files []string
	for _, e := range entries {
		if e.Name() != checksumsFile {
			files = append(files, e.Name())
		}
	}
	d.remove(checksumsFile)
	require.NoError(d.t, writeChecksums(d.dir, files))
}

// image replaces the archive of an image.
func (d damaged) image(i image, files map[Binary]string) {
	d.t.Helper()
	d.remove(i.file)
	require.NoError(d.t, testRelease.writeImage(d.dir, i, files))
}

// layers changes the image of each architecture.
func (d damaged) layers(i image, change func(img v1.Image) (v1.Image, error)) {
	d.t.Helper()
	var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range architectures {
		img, err := testRelease.imageFor(i, arch, testPrograms(d.t))
		require.NoError(d.t, err)
		img, err = change(img)
		require.NoError(d.t, err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: arch},
		}})
	}
	d.remove(i.file)
	require.NoError(d.t, testRelease.writeIndex(d.dir, i, index))
}

// describe writes the manifest of krew for the archives as they are.
func (d damaged) describe() {
	d.t.Helper()
	d.remove(krewFile)
	require.NoError(d.t, testRelease.writeKrew(d.dir))
}

// plugin replaces an archive of the plugin by one with these files next to the licence.
func (d damaged) plugin(file string, mode int64, names ...string) {
	d.t.Helper()
	var content bytes.Buffer
	compressed := gzip.NewWriter(&content)
	archive := tar.NewWriter(compressed)
	// Any binary of Go will do.
	data, err := os.ReadFile(testPrograms(d.t)[testRelease.own(Plugin, Platform{"darwin", "amd64"})])
	require.NoError(d.t, err)
	require.NoError(d.t, writeTarFile(archive, licence, 0o644, nil, testRelease.Time))
	for _, name := range names {
		require.NoError(d.t, writeTarFile(archive, name, mode, data, testRelease.Time))
	}
	require.NoError(d.t, archive.Close())
	require.NoError(d.t, compressed.Close())
	d.write(file, content.Bytes())
	d.describe()
}

// linkLicence replaces an archive of the plugin by one whose licence is a link.
func (d damaged) linkLicence(kind byte) {
	d.t.Helper()
	var content bytes.Buffer
	compressed := gzip.NewWriter(&content)
	archive := tar.NewWriter(compressed)
	require.NoError(d.t, archive.WriteHeader(&tar.Header{Typeflag: kind, Name: licence, Linkname: "/etc/shadow"}))
	require.NoError(d.t, archive.Close())
	require.NoError(d.t, compressed.Close())
	d.write(pluginFile, content.Bytes())
	d.describe()
}

// bom changes the materials of the webhook.
func (d damaged) bom(change func(b *bom)) {
	d.t.Helper()
	var b bom
	require.NoError(d.t, json.Unmarshal(d.read(sbomFile), &b))
	change(&b)
	data, err := json.Marshal(b)
	require.NoError(d.t, err)
	d.write(sbomFile, data)
}

// Each setting of the images is in their Dockerfile, too.
func TestImagesAreThoseOfTheDockerfiles(t *testing.T) {
	for file, config := range map[string]v1.Config{
		"webhook/Dockerfile":   testRelease.images()[0].config,
		"installer/Dockerfile": testRelease.images()[1].config,
		"etcd/Dockerfile":      testRelease.images()[2].config,
	} {
		data, err := os.ReadFile(filepath.Join("..", "images", filepath.FromSlash(file)))
		require.NoError(t, err)
		want := map[string]string{"USER": config.User, "ENTRYPOINT": arguments(t, config.Entrypoint), "CMD": arguments(t, config.Cmd)}
		got := map[string]string{"CMD": "null"}
		var programs []string
		for line := range strings.Lines(string(data)) {
			instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch instruction {
			case "USER", "ENTRYPOINT", "CMD":
				got[instruction] = strings.ReplaceAll(rest, " ", "")
			case "COPY":
				programs = append(programs, strings.Fields(rest)[0])
			case "FROM", "#", "":
			default:
				t.Errorf("%s: %s is not in build/release/images.go", file, instruction)
			}
		}
		assert.Equal(t, want, got, file)
		for _, i := range testRelease.images() {
			if strings.HasPrefix(i.file, "guard-"+filepath.Dir(file)) {
				assert.ElementsMatch(t, sortedKeys(i.programs("amd64")), programs, file)
			}
		}
	}
}

func arguments(t *testing.T, list []string) string {
	data, err := json.Marshal(list)
	require.NoError(t, err)
	return string(data)
}
