// Package webhookinstall has what any test must do to have the companion control plane
// in its cluster: the names from manifests/control-plane, an overlay for a cluster that
// needs something particular of the webhook's pods, and checks whether it acts.
// It applies nothing itself: that is kubectl's, as for a user.
package webhookinstall

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/yaml"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Names from the manifests.
const (
	// Namespace is where the webhook's pods are.
	Namespace = "kubelet-guard-system"
	// Deployment is the webhook's.
	Deployment = "guard-webhook"
	// Selector selects the webhook's pods.
	Selector = "app.kubernetes.io/name=guard-webhook"
	// Container is the one container of each of them.
	Container = "webhook"
	// Image is that container's.
	Image = "localhost/guard/webhook:dev"
	// Configuration is the ValidatingWebhookConfiguration.
	Configuration = "kubelet-guard"
)

// Overlay is one of the project's overlays with a change to the webhook's pods.
type Overlay struct {
	// Manifests is the folder with the project's manifests.
	Manifests string
	// Base is the project's overlay: audit, canary or enforce.
	Base string
	// Components are those of the project's that are added.
	Components []string
	// PodSpec is merged into that of the pods, as a strategic merge patch does. Empty
	// changes nothing.
	PodSpec map[string]any
}

// Write writes the overlay into a folder, which it makes, for kubectl apply -k.
func (o Overlay) Write(dir string) error {
	base, err := filepath.Rel(dir, filepath.Join(o.Manifests, "control-plane", "overlays", o.Base))
	if err != nil {
		return fmt.Errorf("overlay %s: %w", o.Base, err)
	}
	var components []string
	for _, name := range o.Components {
		component, err := filepath.Rel(dir, filepath.Join(o.Manifests, "control-plane", "components", name))
		if err != nil {
			return fmt.Errorf("overlay %s: component %s: %w", o.Base, name, err)
		}
		components = append(components, component)
	}
	content := map[string]any{
		"apiVersion": "kustomize.config.k8s.io/v1beta1",
		"kind":       "Kustomization",
		"resources":  []string{base},
		"components": components,
	}
	if len(o.PodSpec) > 0 {
		patch, err := yaml.Marshal(map[string]any{
			"apiVersion": "apps/v1",
			"kind":       "Deployment",
			"metadata":   map[string]string{"name": Deployment, "namespace": Namespace},
			"spec":       map[string]any{"template": map[string]any{"spec": o.PodSpec}},
		})
		if err != nil {
			return fmt.Errorf("overlay %s: pod spec: %w", o.Base, err)
		}
		content["patches"] = []map[string]string{{"patch": string(patch)}}
	}
	kustomization, err := yaml.Marshal(content)
	if err != nil {
		return fmt.Errorf("overlay %s: %w", o.Base, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("overlay %s: %w", o.Base, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), kustomization, 0o644); err != nil {
		return fmt.Errorf("overlay %s: %w", o.Base, err)
	}
	return nil
}

// AwaitCertificate waits until the webhook has written its certificate authority into
// its configuration. Until then no call reaches it.
func AwaitCertificate(ctx context.Context, client kubernetes.Interface, within time.Duration) {
	ginkgo.GinkgoHelper()
	gomega.Eventually(ctx, func(g gomega.Gomega) {
		configuration, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, Configuration, metav1.GetOptions{})
		g.Expect(err).NotTo(gomega.HaveOccurred())
		for _, webhook := range configuration.Webhooks {
			g.Expect(webhook.ClientConfig.CABundle).NotTo(gomega.BeEmpty(), webhook.Name)
		}
	}).WithTimeout(within).Should(gomega.Succeed(), "the webhook to write its certificate authority into the configuration")
}

// ProbeName is the name of the object of Probe.
const ProbeName = "kubelet-guard-e2e-probe"

// Probe has the API server call the webhook for a delete that changes nothing: that
// of an object with an override annotation, which is the webhook's to decide, and which
// it refuses where it enforces. It returns the response, nil where the delete may pass;
// err is why there was none. The object stays.
func Probe(ctx context.Context, configMaps corev1client.ConfigMapInterface) (answer, err error) {
	_, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name:        ProbeName,
		Labels:      map[string]string{guardv1alpha1.DeletionProtectionLabel: "always"},
		Annotations: map[string]string{guardv1alpha1.OverrideAnnotation: "not a time"},
	}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	return configMaps.Delete(ctx, ProbeName, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}), nil
}
