package release

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/filters/imagetag"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// developmentImages are the images in manifests/, which make webhook-image and guard-etcd-image
// build.
const (
	developmentImage     = "localhost/guard/webhook"
	developmentEtcdImage = "localhost/guard/guard-etcd"
)

// overlays are the folders below manifests/ that a user applies, their files, and the program that
// a container there runs.
var overlays = []struct {
	file, folder string
	program      Program
}{
	{"manifests-node.yaml", ".", ""},
	{"manifests-rollout.yaml", "rollout", ""},
	{"manifests-control-plane-audit.yaml", "control-plane/overlays/audit", Webhook},
	{"manifests-control-plane-canary.yaml", "control-plane/overlays/canary", Webhook},
	{"manifests-control-plane-enforce.yaml", "control-plane/overlays/enforce", Webhook},
	{"manifests-monitoring-operator.yaml", "monitoring/operator", ""},
	{"manifests-monitoring-grafana.yaml", "monitoring/grafana", ""},
	{"manifests-data-protection.yaml", "data-protection", Etcd},
}

// writeManifests renders the overlays, with the release's images.
func (r Release) writeManifests(dir, manifests string) error {
	for _, o := range overlays {
		objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(manifests, o.folder))
		if err != nil {
			return fmt.Errorf("manifests/%s: %w", o.folder, err)
		}
		for development, released := range map[string]string{developmentImage: r.webhookImage(), developmentEtcdImage: r.etcdImage()} {
			if err := objects.ApplyFilter(imagetag.LegacyFilter{
				ImageTag: types.Image{Name: development, NewName: released, NewTag: r.Version},
			}); err != nil {
				return fmt.Errorf("manifests/%s: %w", o.folder, err)
			}
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

// checkManifests compares the images of all containers with the release's: the webhook's in each
// file of the control plane, guard-etcd's in that of data protection, and none in the others.
func checkManifests(dir string, r Release) error {
	for _, o := range overlays {
		f, err := os.Open(filepath.Join(dir, o.file))
		if err != nil {
			return err
		}
		images, err := containerImages(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", o.file, err)
		}
		var want []string
		switch o.program {
		case Webhook:
			want = []string{r.webhookImage() + ":" + r.Version}
		case Etcd:
			want = []string{r.etcdImage() + ":" + r.Version}
		}
		if !slices.Equal(images, want) {
			return fmt.Errorf("%s: it has the images %v, and should have %v", o.file, images, want)
		}
	}
	return nil
}

// containerImages returns the images of all containers in a file of objects.
func containerImages(r io.Reader) ([]string, error) {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(r))
	var images []string
	for objects := 0; ; objects++ {
		data, err := documents.Read()
		if errors.Is(err, io.EOF) {
			if objects == 0 {
				err = errors.New("it has no objects")
			} else {
				err = nil
			}
			return images, err
		}
		if err != nil {
			return nil, err
		}
		var object map[string]any
		if err := yaml.Unmarshal(data, &object); err != nil {
			return nil, err
		}
		images = appendImages(images, object)
	}
}

// appendImages appends the images anywhere in an object, so that no kind of workload and of
// container is forgotten. In a schema, a field of this name is not a string.
func appendImages(images []string, value any) []string {
	switch value := value.(type) {
	case []any:
		for _, v := range value {
			images = appendImages(images, v)
		}
	case map[string]any:
		for _, key := range sortedKeys(value) {
			if image, ok := value[key].(string); ok && key == "image" {
				images = append(images, image)
			}
			images = appendImages(images, value[key])
		}
	}
	return images
}
