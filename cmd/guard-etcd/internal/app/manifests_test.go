package app

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../../../../manifests/data-protection"

// cronJob renders the manifests with components, and decodes the CronJob strictly.
func cronJob(t *testing.T, components ...string) *batchv1.CronJob {
	t.Helper()
	overlay := "resources: [manifests/data-protection]\ncomponents:\n"
	for _, c := range components {
		overlay += "- manifests/data-protection/components/" + c + "\n"
	}
	return render(t, overlay)
}

// render renders an overlay, whose paths are below the root of the repository, and decodes the
// CronJob strictly.
func render(t *testing.T, overlay string) *batchv1.CronJob {
	t.Helper()
	base, err := filepath.Abs(manifests)
	require.NoError(t, err)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	relative, err := filepath.Rel(dir, base)
	require.NoError(t, err)
	overlay = strings.ReplaceAll(overlay, "manifests/data-protection", relative)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600))
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	require.NoError(t, err)
	var found *batchv1.CronJob
	for _, object := range objects.Resources() {
		if object.GetKind() != "CronJob" {
			continue
		}
		content, err := object.AsYAML()
		require.NoError(t, err)
		found = &batchv1.CronJob{}
		require.NoError(t, yaml.UnmarshalStrict(content, found))
	}
	require.NotNil(t, found)
	return found
}

// parse parses a command line of guard-etcd as the program would, and returns the value of a flag.
func parse(t *testing.T, arguments []string) func(flag string) string {
	t.Helper()
	root := NewCommand(genericiooptions.IOStreams{In: strings.NewReader(""), Out: io.Discard, ErrOut: io.Discard})
	verb, rest, err := root.Find(arguments)
	require.NoError(t, err)
	require.Equal(t, "save", verb.Name())
	require.NoError(t, verb.ParseFlags(rest))
	require.NoError(t, verb.ValidateArgs(verb.Flags().Args()))
	return func(flag string) string {
		if flag == "" {
			return verb.Flags().Arg(0)
		}
		return verb.Flag(flag).Value.String()
	}
}

func TestCronJob(t *testing.T) {
	t.Parallel()
	job := cronJob(t)
	require.Equal(t, batchv1.ForbidConcurrent, job.Spec.ConcurrencyPolicy)
	pod := job.Spec.JobTemplate.Spec.Template.Spec
	require.Equal(t, corev1.RestartPolicyNever, pod.RestartPolicy)
	require.Equal(t, ptr.To(false), pod.AutomountServiceAccountToken)
	require.Len(t, pod.Containers, 1)
	container := pod.Containers[0]
	require.Equal(t, &corev1.SecurityContext{
		RunAsUser: ptr.To[int64](0), AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}, container.SecurityContext)

	flag := parse(t, container.Args)
	writable := map[string]bool{flag(""): true, filepath.Dir(flag("metrics-file")): true}
	requireMounts(t, pod, writable, []string{
		flag("apiserver-manifest"), "/etc/kubernetes/pki/etcd/ca.crt", "/etc/kubernetes/pki/apiserver-etcd-client.crt", "/etc/kubernetes/pki/apiserver-etcd-client.key",
	})
}

func TestCronJobWithComponents(t *testing.T) {
	t.Parallel()
	pod := cronJob(t, "root-certificate", "encryption-configuration").Spec.JobTemplate.Spec.Template.Spec
	flag := parse(t, pod.Containers[0].Args)
	writable := map[string]bool{flag(""): true, filepath.Dir(flag("metrics-file")): true}
	requireMounts(t, pod, writable, []string{
		flag("apiserver-manifest"), "/etc/kubernetes/pki/etcd/ca.crt", flag("etcd-certfile"), flag("etcd-keyfile"), "/etc/kubernetes/enc",
	})
}

// The overlay that the docs show is one that works.
func TestOverlayOfTheDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../../docs/data-protection.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(page), "## Every hour\n")
	require.True(t, found)
	_, overlay, found := strings.Cut(section, "```yaml\n")
	require.True(t, found)
	overlay, _, _ = strings.Cut(overlay, "```")
	job := render(t, overlay).Spec.JobTemplate.Spec
	require.Equal(t, ptr.To[int32](3), job.Completions)
	require.Equal(t, ptr.To[int32](3), job.Parallelism)
	container := job.Template.Spec.Containers[0]
	require.Equal(t, "registry.example/kubelet-guard/guard-etcd:0.1.0", container.Image)
	require.Contains(t, container.Args, "--etcd-certfile=/etc/kubernetes/pki/etcd/root.crt")
	require.True(t, slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/etc/kubernetes/enc" }))
}

// requireMounts fails unless the container has these paths of the host at their places and no
// others: those that are not written read-only, and of the keys no whole folder.
func requireMounts(t *testing.T, pod corev1.PodSpec, writable map[string]bool, readOnly []string) {
	t.Helper()
	volumes := map[string]corev1.HostPathVolumeSource{}
	for _, v := range pod.Volumes {
		require.NotNil(t, v.HostPath, v.Name)
		volumes[v.Name] = *v.HostPath
	}
	var found []string
	for _, m := range pod.Containers[0].VolumeMounts {
		volume, known := volumes[m.Name]
		require.True(t, known, m.Name)
		require.Equal(t, volume.Path, m.MountPath, "the manifest of the API server names paths of the host")
		require.Equal(t, !writable[m.MountPath], m.ReadOnly, m.MountPath)
		if strings.HasPrefix(m.MountPath, "/etc/kubernetes/pki") {
			require.Equal(t, corev1.HostPathFile, *volume.Type, m.MountPath)
		}
		if m.ReadOnly {
			found = append(found, m.MountPath)
		} else {
			delete(writable, m.MountPath)
		}
	}
	require.ElementsMatch(t, readOnly, found)
	require.Empty(t, writable, "not mounted")
	require.Len(t, pod.Volumes, len(pod.Containers[0].VolumeMounts))
}

// unitLine returns the values of a setting in a unit.
func unitLine(t *testing.T, file, setting string) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(manifests, "systemd", file))
	require.NoError(t, err)
	var values []string
	for line := range strings.Lines(string(content)) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), setting+"="); found {
			values = append(values, value)
		}
	}
	return values
}

func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	start := unitLine(t, "guard-etcd-save.service", "ExecStart")
	require.Len(t, start, 1)
	command := strings.Fields(start[0])
	flag := parse(t, command[1:])
	// The same as the CronJob's, which may write to the same two folders.
	require.Equal(t, cronJob(t).Spec.JobTemplate.Spec.Template.Spec.Containers[0].Args, command[1:])
	writable := strings.Fields(unitLine(t, "guard-etcd-save.service", "ReadWritePaths")[0])
	require.ElementsMatch(t, []string{flag(""), filepath.Dir(flag("metrics-file"))}, writable)

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "guard-etcd")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700))
	arguments := []string{"verify"}
	for _, name := range []string{"guard-etcd-save.service", "guard-etcd-save.timer"} {
		content, err := os.ReadFile(filepath.Join(manifests, "systemd", name))
		require.NoError(t, err)
		file := filepath.Join(dir, name)
		// systemd looks whether the program is there.
		require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(content), command[0], program)), 0o600))
		arguments = append(arguments, file)
	}
	out, err := exec.Command(analyze, arguments...).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Empty(t, slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(line string) bool {
		return line == "" || !strings.Contains(line, "guard-etcd-save") // of units of this machine
	}), fmt.Sprintf("systemd-analyze verify:\n%s", out))
}
