package kind

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func TestBuildContextHasFoldersBeforeTheirFiles(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(program, []byte("binary"), 0o600))
	c := buildContext{
		content: map[string][]byte{"Dockerfile": []byte("FROM scratch"), "root/etc/file": []byte("x")},
		files:   map[string]string{"root/usr/bin/program": program},
	}
	var written bytes.Buffer
	require.NoError(t, c.write(&written))

	type entry struct {
		mode    int64
		content string
	}
	got := map[string]entry{}
	archive := tar.NewReader(&written)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		content, err := io.ReadAll(archive)
		require.NoError(t, err)
		require.NotContains(t, got, header.Name)
		if parent := filepath.Dir(filepath.Clean(header.Name)); parent != "." {
			require.Contains(t, got, parent+"/")
		}
		got[header.Name] = entry{header.Mode, string(content)}
	}
	require.Equal(t, map[string]entry{
		"Dockerfile":           {0o644, "FROM scratch"},
		"root/":                {0o755, ""},
		"root/etc/":            {0o755, ""},
		"root/etc/file":        {0o644, "x"},
		"root/usr/":            {0o755, ""},
		"root/usr/bin/":        {0o755, ""},
		"root/usr/bin/program": {0o755, "binary"},
	}, got)
}

func TestFingerprintFollowsContent(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	a, b := write("a", "1"), write("b", "2")
	before, err := fingerprint([]string{a, b}, 1, "x")
	require.NoError(t, err)
	for name, test := range map[string]func() (string, error){
		"other value": func() (string, error) { return fingerprint([]string{a, b}, 1, "y") },
		"other files": func() (string, error) { return fingerprint([]string{a}, 1, "x") },
		"other content": func() (string, error) {
			write("b", "3")
			return fingerprint([]string{a, b}, 1, "x")
		},
	} {
		after, err := test()
		require.NoError(t, err)
		require.NotEqual(t, before, after, name)
	}
	write("b", "2")
	again, err := fingerprint([]string{a, b}, 1, "x")
	require.NoError(t, err)
	require.Equal(t, before, again)
	_, err = fingerprint([]string{filepath.Join(dir, "absent")})
	require.Error(t, err)
}

func TestProgramsOfAVersion(t *testing.T) {
	output := t.TempDir()
	write := func(name, version string) {
		file := filepath.Join(output, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\necho Kubernetes "+version+"\n"), 0o755))
	}
	write("bin/kubelet-stock", "v1.37.2")
	write("v1.36.3/kubelet-stock", "v1.36.3")
	_, err := findPrograms(t.Context(), output, "v1.36.3")
	require.ErrorContains(t, err, filepath.Join(output, "v1.36.3", "kubelet"))

	for version, folder := range map[string]string{"v1.36.3": "v1.36.3", "": "bin"} {
		p := programs{output: output, version: cmp.Or(version, "v1.37.2"), kubelets: filepath.Join(output, folder)}
		for _, file := range append(p.files(), p.guarded()) {
			name, err := filepath.Rel(output, file)
			require.NoError(t, err)
			write(name, p.version)
		}
		found, err := findPrograms(t.Context(), output, version)
		require.NoError(t, err)
		require.Equal(t, p, found)
	}

	write("v1.35.4/kubelet-stock", "v1.36.3")
	_, err = findPrograms(t.Context(), output, "v1.35.4")
	require.ErrorContains(t, err, "is v1.36.3: make binaries kind-binaries KUBE_VERSION=v1.35.4")
}

// decode decodes the objects of a manifest, strictly.
func decode(t *testing.T, manifest string) []runtime.Object {
	t.Helper()
	var objects []runtime.Object
	for r := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifest))); ; {
		document, err := r.Read()
		if err == io.EOF {
			return objects
		}
		require.NoError(t, err)
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(document, nil, nil)
		require.NoError(t, err)
		objects = append(objects, object)
	}
}

func TestManifests(t *testing.T) {
	require.Len(t, decode(t, defaultStorage), 1)

	// What kind looks for before it fills in the subnet and adds a variable.
	require.Contains(t, defaultCNI, "would you kindly template this file")
	require.Contains(t, defaultCNI, "would you kindly patch this file")
	filled, err := template.New("cni").Parse(defaultCNI)
	require.NoError(t, err)
	var manifest bytes.Buffer
	require.NoError(t, filled.Execute(&manifest, struct{ PodSubnet string }{"10.244.0.0/16"}))
	objects := decode(t, manifest.String())
	require.Len(t, objects, 4)
	set, ok := objects[3].(*appsv1.DaemonSet)
	require.True(t, ok)
	container := set.Spec.Template.Spec.Containers[0]
	require.Equal(t, podnetImage, container.Image)
	require.Equal(t, "10.244.0.0/16", container.Env[len(container.Env)-1].Value)
}

func TestImagesThatKubeadmNeeds(t *testing.T) {
	c := imagesConfig{Output: t.TempDir(), Version: "v1.36.3"}
	kubeadm := filepath.Join(c.Output, c.Version, "kubeadm")
	require.NoError(t, os.MkdirAll(filepath.Dir(kubeadm), 0o755))
	answer := func(script string) {
		require.NoError(t, os.WriteFile(kubeadm, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	answer(`[ "$*" = "config images list --kubernetes-version=v1.36.3" ] || exit 2
printf '%s\n' example.com/kube-scheduler:v1.36.3 example.com/coredns/coredns:v1.14.2 example.com/pause:3.10`)
	wanted, err := c.wantedByKubeadm(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"example.com/kube-scheduler:v1.36.3", "example.com/coredns/coredns:v1.14.2", "example.com/pause:3.10"}, wanted)

	image, err := c.image(wanted[0])
	require.NoError(t, err)
	require.Equal(t, wanted[0], image.Name)
	require.Equal(t, filepath.Join(c.Output, "v1.36.3", "kube-scheduler"), image.Files[0].Source)
	image, err = c.image(wanted[1])
	require.NoError(t, err)
	require.Equal(t, []string{"/coredns"}, image.Entrypoint)
	image, err = c.image(wanted[2])
	require.NoError(t, err)
	require.Equal(t, []string{"/pause"}, image.Entrypoint)

	_, err = c.image("example.com/kube-novelty:v1")
	require.ErrorContains(t, err, "kubeadm v1.36.3 needs the image example.com/kube-novelty:v1, and nothing here builds it")
	_, err = c.image("example.com/kube-proxy:v1")
	require.ErrorContains(t, err, "image of kube-proxy")

	answer("echo unknown version >&2; exit 3")
	_, err = c.wantedByKubeadm(t.Context())
	require.ErrorContains(t, err, "unknown version")
}
