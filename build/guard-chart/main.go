// Command guard-chart writes what the Helm chart has from elsewhere: its objects, which are those
// that kustomize builds of the manifests, and from the schema of its values both values.yaml and
// the table in its README.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

//go:generate go run . -root ../..

const (
	chartPath     = "charts/kubelet-guard"
	manifestsPath = "manifests"
	// basePath is the overlay that the chart changes by its values.
	basePath = "control-plane/overlays/enforce"
)

func main() {
	root := flag.String("root", ".", "root folder of the repository")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, "guard-chart:", err)
		os.Exit(1)
	}
}

// run writes the files that are not what generate returns, and removes files of objects that
// generate does not return.
func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		file := filepath.Join(root, chartPath, path)
		old, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if bytes.Equal(old, files[path]) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, files[path], 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", file)
	}
	dir := filepath.Join(root, chartPath)
	return filepath.WalkDir(filepath.Join(dir, "files"), func(file string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		path, err := filepath.Rel(dir, file)
		if err != nil || files[filepath.ToSlash(path)] != nil {
			return err
		}
		fmt.Println("removed", file)
		return os.Remove(file)
	})
}

// generate returns the content of each file by its path in the chart.
func generate(root string) (map[string][]byte, error) {
	files, err := objectFiles(filepath.Join(root, manifestsPath))
	if err != nil {
		return nil, err
	}
	schema, err := readSchema(filepath.Join(root, chartPath, "values.schema.json"))
	if err != nil {
		return nil, err
	}
	if files["values.yaml"], err = schema.valuesFile(); err != nil {
		return nil, err
	}
	readme, err := os.ReadFile(filepath.Join(root, chartPath, "README.md"))
	if err != nil {
		return nil, err
	}
	files["README.md"], err = schema.readme(readme)
	return files, err
}

// key names an object; the guard has none of the same kind and name in two namespaces within one
// group of manifests.
type key struct{ apiVersion, kind, namespace, name string }

func keyOf(r *resource.Resource) key {
	return key{r.GetApiVersion(), r.GetKind(), r.GetNamespace(), r.GetName()}
}

// build builds a folder as kubectl apply -k does.
func build(dir string) ([]*resource.Resource, error) {
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", dir, err)
	}
	return result.Resources(), nil
}

// objectFiles returns the files of objects. Those of the overlay are in one file for each of the
// folders and files of manifests that a value selects.
func objectFiles(manifests string) (map[string][]byte, error) {
	group := map[key]string{}
	for _, folder := range []struct{ path, file string }{
		{"control-plane/namespace", "files/namespace.yaml"},
		{"crds", "files/crds.yaml"},
		{"rbac", "files/rbac.yaml"},
		{"control-plane/webhook", "files/webhook.yaml"},
	} {
		resources, err := build(filepath.Join(manifests, folder.path))
		if err != nil {
			return nil, err
		}
		for _, r := range resources {
			group[keyOf(r)] = folder.file
		}
	}
	overlay, err := build(filepath.Join(manifests, basePath))
	if err != nil {
		return nil, err
	}
	objects := map[string][]*resource.Resource{}
	for _, r := range overlay {
		file, err := group[keyOf(r)], error(nil)
		switch {
		case r.GetKind() == "Deployment":
			continue // templates/deployment.yaml
		case file == "":
			file, err = policyFile(r)
		}
		if err != nil {
			return nil, err
		}
		objects[file] = append(objects[file], r)
	}
	for path, file := range map[string]string{
		"rollout":             "files/rollout.yaml",
		"monitoring/operator": "files/monitoring.yaml",
		"monitoring/grafana":  "files/dashboard.yaml",
		"control-plane/components/kubernetes-1.35": "files/policies/protection-kubernetes-1.35.yaml",
	} {
		if objects[file], err = build(filepath.Join(manifests, path)); err != nil {
			return nil, err
		}
	}

	files := map[string][]byte{}
	for file, resources := range objects {
		if files[file], err = render(resources); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	// No kustomization has it alone: it is a component.
	certificate, err := os.ReadFile(filepath.Join(manifests, "control-plane/components/cert-manager/certificate.yaml"))
	if err != nil {
		return nil, err
	}
	files["files/cert-manager.yaml"] = append([]byte(header), certificate...)
	return files, nil
}

const header = "# Written by make generate from manifests/; do not edit.\n"

// render returns the objects as documents of one file.
func render(resources []*resource.Resource) ([]byte, error) {
	text := bytes.NewBufferString(header)
	for i, r := range resources {
		object, err := r.AsYAML()
		if err != nil {
			return nil, err
		}
		if i > 0 {
			text.WriteString("---\n")
		}
		text.Write(object)
	}
	return text.Bytes(), nil
}

// policySubjects are the policies of the chart's values, by the part of the names before
// kubelet-guard.io: of grant.protection.kubelet-guard.io, protection.
var policySubjects = map[string]string{
	"deletion":      "deletion",
	"labels":        "labelValues",
	"node-deletion": "nodes",
	"protection":    "protection",
	"replicas":      "replicas",
	"scale":         "scale",
}

// policyFile returns the file of a policy or of its binding, whose name it has.
func policyFile(r *resource.Resource) (string, error) {
	_, subject, _ := strings.Cut(strings.TrimSuffix(r.GetName(), ".kubelet-guard.io"), ".")
	subject, ok := policySubjects[subject]
	if !ok {
		return "", fmt.Errorf("%s %s: the chart has no file for it; add its folder to objectFiles, or the part of its name to policySubjects", r.GetKind(), r.GetName())
	}
	if strings.HasPrefix(r.GetKind(), "Mutating") {
		return "files/policies/" + subject + "-mutating.yaml", nil
	}
	return "files/policies/" + subject + ".yaml", nil
}
