package webhookinstall

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../../../manifests"

// webhookOf builds a folder as kubectl does and returns the webhook's Deployment and
// the names of the configurations.
func webhookOf(t *testing.T, dir string) (deployment appsv1.Deployment, configurations []string) {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	require.NoError(t, err)
	for _, object := range built.Resources() {
		if object.GetKind() == "ValidatingWebhookConfiguration" {
			configurations = append(configurations, object.GetName())
		}
		if object.GetKind() == "Deployment" && object.GetName() == Deployment {
			text, err := object.AsYAML()
			require.NoError(t, err)
			require.NoError(t, yaml.UnmarshalStrict(text, &deployment))
		}
	}
	return deployment, configurations
}

func TestNamesAreThoseOfTheManifests(t *testing.T) {
	deployment, configurations := webhookOf(t, filepath.Join(manifests, "control-plane", "overlays", "enforce"))
	require.Equal(t, Namespace, deployment.Namespace)
	require.Contains(t, Selector, "="+deployment.Spec.Template.Labels["app.kubernetes.io/name"])
	require.Len(t, deployment.Spec.Template.Spec.Containers, 1)
	require.Equal(t, Container, deployment.Spec.Template.Spec.Containers[0].Name)
	require.Equal(t, Image, deployment.Spec.Template.Spec.Containers[0].Image)
	require.Equal(t, []string{Configuration}, configurations)
}

func TestOverlay(t *testing.T) {
	// kustomize follows links before it follows the relative path in the overlay.
	parent, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	absolute, err := filepath.Abs(manifests)
	require.NoError(t, err)
	for _, base := range []string{"audit", "canary", "enforce"} {
		t.Run(base, func(t *testing.T) {
			want, _ := webhookOf(t, filepath.Join(manifests, "control-plane", "overlays", base))
			want.Spec.Template.Spec.NodeSelector = map[string]string{"pool": "a"}
			added := corev1.EnvVar{Name: "ADDED", Value: "10.0.0.1"}
			container := &want.Spec.Template.Spec.Containers[0]
			container.Env = append([]corev1.EnvVar{added}, container.Env...)

			dir := filepath.Join(parent, "overlays", base)
			require.NoError(t, Overlay{Manifests: absolute, Base: base, PodSpec: map[string]any{
				"nodeSelector": map[string]string{"pool": "a"},
				"containers":   []any{map[string]any{"name": Container, "env": []corev1.EnvVar{added}}},
			}}.Write(dir))
			got, _ := webhookOf(t, dir)
			require.Equal(t, want, got)
		})
	}
}

func TestOverlayThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	err := Overlay{Manifests: t.TempDir(), Base: "enforce"}.Write(filepath.Join(file, "overlay"))
	require.ErrorContains(t, err, "overlay enforce: mkdir")
}

// The component replaces an argument by its place.
func TestOverlayWithCallers(t *testing.T) {
	parent, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	absolute, err := filepath.Abs(manifests)
	require.NoError(t, err)
	for base, mode := range map[string]string{"audit": "Audit", "canary": "Enforce", "enforce": "Enforce"} {
		t.Run(base, func(t *testing.T) {
			open, _ := webhookOf(t, filepath.Join(manifests, "control-plane", "overlays", base))
			require.Equal(t, []string{"--mode=" + mode, "--allow-any-caller"}, open.Spec.Template.Spec.Containers[0].Args)
			dir := filepath.Join(parent, base)
			require.NoError(t, Overlay{Manifests: absolute, Base: base, Components: []string{"callers"}}.Write(dir))
			closed, _ := webhookOf(t, dir)
			container := closed.Spec.Template.Spec.Containers[0]
			require.Equal(t, []string{"--mode=" + mode, "--caller-ca-file=/callers/ca.crt", "--caller-names=kube-apiserver-kubelet-client"}, container.Args)
			require.Contains(t, container.VolumeMounts, corev1.VolumeMount{Name: "callers", MountPath: "/callers", ReadOnly: true})
		})
	}
}

func TestProbe(t *testing.T) {
	client := fake.NewClientset()
	configMaps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	var deletes []metav1.DeleteOptions
	var refusal error
	client.PrependReactor("delete", "configmaps", func(action clienttesting.Action) (bool, runtime.Object, error) {
		deletes = append(deletes, action.(clienttesting.DeleteActionImpl).DeleteOptions)
		return true, nil, refusal
	})

	answer, err := Probe(t.Context(), configMaps)
	require.NoError(t, err)
	require.NoError(t, answer, "a webhook that lets it pass")
	refusal = errors.New("refused")
	answer, err = Probe(t.Context(), configMaps)
	require.NoError(t, err, "the object is there already")
	require.Equal(t, refusal, answer)
	dryRun := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	require.Equal(t, []metav1.DeleteOptions{dryRun, dryRun}, deletes)

	broken := errors.New("no such namespace")
	client.PrependReactor("create", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, broken })
	answer, err = Probe(t.Context(), configMaps)
	require.Equal(t, broken, err)
	require.NoError(t, answer, "no request was sent")
}
