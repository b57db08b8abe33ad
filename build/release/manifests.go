package release

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/filters/imagetag"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// developmentImage is the webhook's image in manifests/, which make webhook-image builds.
const developmentImage = "localhost/guard/webhook"

// overlays are the folders below manifests/ that a user applies, and their files.
var overlays = []struct{ file, folder string }{
	{"manifests-node.yaml", "."},
	{"manifests-rollout.yaml", "rollout"},
	{"manifests-control-plane-audit.yaml", "control-plane/overlays/audit"},
	{"manifests-control-plane-canary.yaml", "control-plane/overlays/canary"},
	{"manifests-control-plane-enforce.yaml", "control-plane/overlays/enforce"},
	{"manifests-monitoring-operator.yaml", "monitoring/operator"},
	{"manifests-monitoring-grafana.yaml", "monitoring/grafana"},
}

// writeManifests renders the overlays, with the release's image of the webhook.
func (r Release) writeManifests(dir, manifests string) error {
	for _, o := range overlays {
		objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(manifests, o.folder))
		if err != nil {
			return fmt.Errorf("manifests/%s: %w", o.folder, err)
		}
		if err := objects.ApplyFilter(imagetag.LegacyFilter{
			ImageTag: types.Image{Name: developmentImage, NewName: r.webhookImage(), NewTag: r.Version},
		}); err != nil {
			return fmt.Errorf("manifests/%s: %w", o.folder, err)
		}
		data, err := objects.AsYaml()
		if err != nil {
			return fmt.Errorf("manifests/%s: %w", o.folder, err)
		}
		if err := os.WriteFile(filepath.Join(dir, o.file), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// checkManifests compares the images of deployments with the release's.
func checkManifests(dir string, r Release) error {
	want := r.images()[0].reference()
	for _, o := range overlays {
		f, err := os.Open(filepath.Join(dir, o.file))
		if err != nil {
			return err
		}
		err = eachDeployment(f, func(data []byte) error {
			var deployment appsv1.Deployment
			if err := yaml.Unmarshal(data, &deployment); err != nil {
				return err
			}
			for _, c := range deployment.Spec.Template.Spec.Containers {
				if c.Image != want {
					return fmt.Errorf("deployment %s has the image %s, and should have %s", deployment.Name, c.Image, want)
				}
			}
			return nil
		})
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", o.file, err)
		}
	}
	return nil
}

// eachDeployment calls a function for each deployment of a file.
func eachDeployment(r io.Reader, visit func(data []byte) error) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for {
		data, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(data, &kind); err != nil {
			return err
		}
		if kind.Kind != "Deployment" {
			continue
		}
		if err := visit(data); err != nil {
			return err
		}
	}
}
