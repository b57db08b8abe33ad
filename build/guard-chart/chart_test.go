package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	release "kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
)

const (
	root  = "../.."
	chart = root + "/" + chartPath
	image = "registry.example:5000/guard/webhook:1.2.3"
	// namespace is that of the release, except in one test.
	namespace = webhookinstall.Namespace
)

// object is one that kubectl or helm applies.
type object = map[string]any

// objects are all of an overlay or a chart by kind, namespace and name.
type objects map[string]object

func (all objects) add(t *testing.T, text string) {
	t.Helper()
	var o object
	require.NoError(t, yaml.Unmarshal([]byte(text), &o), "%s", text)
	if o == nil {
		return
	}
	metadata := o["metadata"].(object)
	namespace, _ := metadata["namespace"].(string)
	id := o["apiVersion"].(string) + " " + o["kind"].(string) + " " + namespace + "/" + metadata["name"].(string)
	if annotations, ok := metadata["annotations"].(object); ok && annotations["helm.sh/hook"] != nil {
		id += " (hook)"
	}
	// Patches of overlays change the order, which has no meaning: all entries are called.
	if webhooks, ok := o["webhooks"].([]any); ok {
		slices.SortFunc(webhooks, func(a, b any) int {
			return strings.Compare(a.(object)["name"].(string), b.(object)["name"].(string))
		})
	}
	require.NotContains(t, all, id, "twice")
	all[id] = o
}

// helm runs helm, which make test-chart builds, with values in JSON.
func helm(t *testing.T, values string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	program := os.Getenv("HELM")
	if program == "" {
		t.Skip("HELM is not set: make test-chart builds helm and runs this test")
	}
	command := exec.CommandContext(t.Context(), program, append([]string{"--namespace=" + namespace, "--values=-"}, args...)...)
	command.Stdin = strings.NewReader(values)
	home := t.TempDir()
	command.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home, "KUBECONFIG=/dev/null")
	var out, log bytes.Buffer
	command.Stdout, command.Stderr = &out, &log
	err = command.Run()
	return out.String(), log.String(), err
}

// template renders the chart with values in JSON, for a version of Kubernetes.
func template(t *testing.T, version, values string, args ...string) objects {
	t.Helper()
	stdout, stderr, err := helm(t, values, append(args, "template", "kubelet-guard", chart, "--kube-version="+version, "--set=image="+image)...)
	require.NoError(t, err, stderr)
	require.Empty(t, stderr)
	all := objects{}
	for text := range strings.SplitSeq(stdout, "\n---\n") {
		all.add(t, text)
	}
	return all
}

// kustomize builds a folder of the manifests.
func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	resources, err := build(dir)
	require.NoError(t, err)
	all := objects{}
	for _, r := range resources {
		text, err := r.AsYAML()
		require.NoError(t, err)
		all.add(t, string(text))
	}
	return all
}

// overlay builds an overlay of the control plane with components, as kubectl does, with the
// image of the values.
func overlay(t *testing.T, base string, components ...string) objects {
	t.Helper()
	// kustomize follows links before it follows the relative path in the overlay.
	parent, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	manifests, err := filepath.Abs(filepath.Join(root, manifestsPath))
	require.NoError(t, err)
	dir := filepath.Join(parent, "overlay")
	require.NoError(t, webhookinstall.Overlay{Manifests: manifests, Base: base, Components: components,
		PodSpec: map[string]any{"containers": []any{map[string]any{"name": webhookinstall.Container, "image": image}}}}.Write(dir))
	return kustomize(t, dir)
}

const (
	systemNamespace = "v1 Namespace /" + namespace
	webhook         = "apps/v1 Deployment " + namespace + "/" + webhookinstall.Deployment
	barrier         = "v1 ConfigMap " + namespace + "/set-mode-audit-before-uninstall"
)

// asInTheChart changes the objects of an overlay in what the chart has on purpose otherwise.
func asInTheChart(t *testing.T, all objects) objects {
	t.Helper()
	require.Contains(t, all, systemNamespace)
	delete(all, systemNamespace)
	kept := 0
	for id, o := range all {
		metadata := o["metadata"].(object)
		if strings.Contains(id, " CustomResourceDefinition ") || metadata["name"] == "kubelet-guard-node" {
			if metadata["annotations"] == nil {
				metadata["annotations"] = object{}
			}
			metadata["annotations"].(object)["helm.sh/resource-policy"] = "keep"
			kept++
		}
	}
	require.Equal(t, 5, kept, "the definitions, and the role of nodes with its binding")
	name, in := "set-mode-audit-before-uninstall", namespace
	all[barrier] = object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": name, "namespace": in,
		"labels": object{"app.kubernetes.io/part-of": "kubelet-guard", "kubelet-guard.io/deletion-protection": "always"}}}
	all[barrier+" (hook)"] = object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": name, "namespace": in,
		"annotations": object{"helm.sh/hook": "pre-delete", "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded"}}}
	return all
}

// requireEqual compares the objects one by one, so that a failure shows one field.
func requireEqual(t *testing.T, want, got objects) {
	t.Helper()
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	for id := range want {
		require.Equal(t, want[id], got[id], id)
	}
}

func TestTheChartHasTheObjectsOfTheOverlays(t *testing.T) {
	const all = `, "certManager": true, "callers": {"verify": true}`
	everything := []string{"callers", "cert-manager"}
	for name, test := range map[string]struct {
		values     string
		version    string
		base       string
		components []string
	}{
		"by default":                    {`{}`, "1.37.0", "audit", nil},
		"audit":                         {`{"mode": "Audit"}`, "1.36.0", "audit", nil},
		"audit with everything":         {`{"mode": "Audit"` + all + `}`, "1.36.3", "audit", everything},
		"audit, canaries":               {`{"mode": "Audit", "canary": true}`, "1.37.0", "audit", []string{"canary"}},
		"enforce":                       {`{"mode": "Enforce"}`, "1.36.3-gke.100", "enforce", nil},
		"enforce with everything, 1.35": {`{"mode": "Enforce"` + all + `}`, "1.35.4", "enforce", append(everything, "kubernetes-1.35")},
		"enforce with own certificates": {`{"mode": "Enforce", "callers": {"verify": true}}`, "1.37.0", "enforce", []string{"callers"}},
		"canary":                        {`{"mode": "Enforce", "canary": true}`, "1.37.0", "canary", nil},
		"canary with everything, 1.35":  {`{"mode": "Enforce", "canary": true` + all + `}`, "1.35.4-eks.1", "canary", append(everything, "kubernetes-1.35")},
	} {
		t.Run(name, func(t *testing.T) {
			got := template(t, test.version, test.values)
			requireEqual(t, asInTheChart(t, overlay(t, test.base, test.components...)), got)
		})
	}
}

func TestANamespaceThatIsNotThatOfTheReleaseIsInTheChart(t *testing.T) {
	got, want := template(t, "1.37.0", `{}`, "--namespace=kube-system"), template(t, "1.37.0", `{}`)
	want[systemNamespace] = kustomize(t, filepath.Join(root, manifestsPath, basePath))[systemNamespace]
	requireEqual(t, want, got)
}

// What a value adds and removes, and that it changes nothing else.
func TestValuesThatAddOrRemoveObjects(t *testing.T) {
	base := template(t, "1.37.0", `{}`)
	with := func(add objects) objects {
		want := maps.Clone(base)
		maps.Copy(want, add)
		return want
	}
	without := func(remove ...string) objects {
		want := maps.Clone(base)
		removed := 0
		maps.DeleteFunc(want, func(id string, _ object) bool {
			_, name, _ := strings.Cut(id, " /")
			hit := slices.ContainsFunc(remove, func(pattern string) bool {
				match, err := filepath.Match(pattern, name)
				require.NoError(t, err)
				return match && !strings.HasPrefix(name, "protectors.")
			})
			if hit {
				removed++
			}
			return hit
		})
		require.GreaterOrEqual(t, removed, len(remove))
		return want
	}
	manifests := func(folder string) objects { return kustomize(t, filepath.Join(root, manifestsPath, folder)) }
	for values, want := range map[string]objects{
		`{"rollout": true}`:                    with(manifests("rollout")),
		`{"monitoring": {"operator": true}}`:   with(manifests("monitoring/operator")),
		`{"monitoring": {"dashboard": true}}`:  with(manifests("monitoring/grafana")),
		`{"crds": false}`:                      without("operationwindows.*", "poddeletions.*", "nodedeletionpolicies.*"),
		`{"policies": {"deletion": false}}`:    without("*.deletion.kubelet-guard.io"),
		`{"policies": {"replicas": false}}`:    without("*.replicas.kubelet-guard.io"),
		`{"policies": {"scale": false}}`:       without("*.scale.kubelet-guard.io"),
		`{"policies": {"protection": false}}`:  without("*.protection.kubelet-guard.io"),
		`{"policies": {"labelValues": false}}`: without("*.labels.kubelet-guard.io"),
		`{"policies": {"nodes": false}}`:       without("*.node-deletion.kubelet-guard.io"),
	} {
		t.Run(values, func(t *testing.T) { requireEqual(t, want, template(t, "1.37.0", values)) })
	}
	t.Run("no policy for 1.35 without protection", func(t *testing.T) {
		require.NotContains(t, strings.Join(slices.Collect(maps.Keys(template(t, "1.35.4", `{"policies": {"protection": false}}`))), "\n"), ".protection.")
	})
}

// field returns a field of an object by its path.
func field(t *testing.T, o object, path ...string) any {
	t.Helper()
	var value any = o
	for _, name := range path {
		fields, ok := value.(object)
		if list, isList := value.([]any); isList {
			fields, ok = list[0].(object)
		}
		require.True(t, ok, "no %s in %v", name, value)
		value = fields[name]
	}
	return value
}

func TestValuesOfTheWebhook(t *testing.T) {
	base := template(t, "1.37.0", `{}`)
	pod := []string{"spec", "template", "spec"}
	container := append(slices.Clone(pod), "containers")
	args := func(more ...any) []any { return append([]any{"--mode=Audit"}, more...) }
	for values, test := range map[string]struct {
		path []string
		want any
	}{
		`{"replicas": 3}`:                              {[]string{"spec", "replicas"}, 3.0},
		`{"priorityClassName": "mine"}`:                {append(slices.Clone(pod), "priorityClassName"), "mine"},
		`{"nodeSelector": {"pool": "1", "b": "true"}}`: {append(slices.Clone(pod), "nodeSelector"), object{"pool": "1", "b": "true"}},
		`{"tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 3}]}`: {append(slices.Clone(pod), "tolerations"),
			[]any{object{"key": "a", "operator": "Exists", "tolerationSeconds": 3.0}}},
		`{"imagePullSecrets": ["a", "b"]}`: {append(slices.Clone(pod), "imagePullSecrets"), []any{object{"name": "a"}, object{"name": "b"}}},
		`{"resources": {"limits": {"memory": "1Gi"}}}`: {append(slices.Clone(container), "resources"),
			object{"requests": object{"cpu": "50m", "memory": "64Mi"}, "limits": object{"memory": "1Gi"}}},
		`{"extraArgs": ["--rule-mode=NodeDeletion=Enforce", "-v=4"]}`:          {append(slices.Clone(container), "args"), args("--allow-any-caller", "--rule-mode=NodeDeletion=Enforce", "-v=4")},
		`{"callers": {"verify": true, "names": ["a", "b"], "configMap": "c"}}`: {append(slices.Clone(container), "args"), args("--caller-ca-file=/callers/ca.crt", "--caller-names=a,b")},
		`{"callers": {"verify": true, "configMap": "c"}}`:                      {append(slices.Clone(pod), "volumes", "configMap", "name"), "c"},
	} {
		t.Run(values, func(t *testing.T) {
			got := template(t, "1.37.0", values)
			require.Equal(t, test.want, field(t, got[webhook], test.path...))
			got[webhook] = base[webhook]
			requireEqual(t, base, got)
		})
	}
	got := template(t, "1.37.0", `{"goMemLimit": "1GiB"}`)
	require.Contains(t, field(t, got[webhook], append(slices.Clone(container), "env")...), object{"name": "GOMEMLIMIT", "value": "1GiB"})
}

func TestValuesOfMonitoring(t *testing.T) {
	const labels = `"labels": {"release": "kube-prometheus-stack"}`
	base := template(t, "1.37.0", `{"monitoring": {"operator": true}}`)
	got := template(t, "1.37.0", `{"monitoring": {"operator": true, `+labels+`, "prometheus": {"namespace": "m", "serviceAccount": "p"}}}`)
	for id := range kustomize(t, filepath.Join(root, manifestsPath, "monitoring/operator")) {
		field(t, base[id], "metadata", "labels").(object)["release"] = "kube-prometheus-stack"
	}
	base["rbac.authorization.k8s.io/v1 RoleBinding "+namespace+"/prometheus-discovery"]["subjects"] = []any{object{"kind": "ServiceAccount", "namespace": "m", "name": "p"}}
	requireEqual(t, base, got)
}

// badValues has, for each value, contents that are errors, with what the message must name.
var badValues = map[string][]string{
	"":                                     {`{"replica": 3}`, `{"Mode": "Audit"}`},
	"image":                                {`{"image": ""}`, `{"image": null}`, `{"image": "a b"}`, `{"image": ":tag"}`, `{"image": "a@sha256:12"}`, `{"image": {"repository": "a"}}`},
	"imagePullSecrets":                     {`{"imagePullSecrets": "a"}`, `{"imagePullSecrets": [{"name": "a"}]}`, `{"imagePullSecrets": [""]}`},
	"mode":                                 {`{"mode": "enforce"}`, `{"mode": "Canary"}`, `{"mode": true}`},
	"canary":                               {`{"canary": "true"}`},
	"policies":                             {`{"policies": true}`, `{"policies": {"label-values": true}}`},
	"policies/deletion":                    {`{"policies": {"deletion": "off"}}`},
	"policies/replicas":                    {`{"policies": {"replicas": 0}}`},
	"policies/scale":                       {`{"policies": {"scale": "false"}}`},
	"policies/protection":                  {`{"policies": {"protection": []}}`},
	"policies/labelValues":                 {`{"policies": {"labelValues": "no"}}`},
	"policies/nodes":                       {`{"policies": {"nodes": {}}}`},
	"crds":                                 {`{"crds": {"install": true}}`},
	"replicas":                             {`{"replicas": 0}`, `{"replicas": -1}`, `{"replicas": "2"}`, `{"replicas": 1.5}`},
	"priorityClassName":                    {`{"priorityClassName": ""}`},
	"nodeSelector":                         {`{"nodeSelector": []}`, `{"nodeSelector": {"pool": true}}`},
	"tolerations":                          {`{"tolerations": {"key": "a"}}`, `{"tolerations": [{"keys": "a"}]}`},
	"resources":                            {`{"resources": "1Gi"}`, `{"resources": {"memory": "1Gi"}}`},
	"goMemLimit":                           {`{"goMemLimit": "120Mi"}`, `{"goMemLimit": 120}`},
	"extraArgs":                            {`{"extraArgs": "--v=1"}`, `{"extraArgs": ["v=1"]}`},
	"certManager":                          {`{"certManager": {"enabled": true}}`},
	"callers":                              {`{"callers": {"ca": "x"}}`},
	"callers/verify":                       {`{"callers": {"verify": "yes"}}`},
	"callers/names":                        {`{"callers": {"names": []}}`, `{"callers": {"names": "a"}}`},
	"callers/configMap":                    {`{"callers": {"configMap": ""}}`},
	"rollout":                              {`{"rollout": {"nodeSelector": {}}}`},
	"monitoring":                           {`{"monitoring": true}`, `{"monitoring": {"enabled": true}}`},
	"monitoring/operator":                  {`{"monitoring": {"operator": "yes"}}`},
	"monitoring/dashboard":                 {`{"monitoring": {"dashboard": 1}}`},
	"monitoring/labels":                    {`{"monitoring": {"labels": ["a"]}}`, `{"monitoring": {"labels": {"a": 1}}}`},
	"monitoring/prometheus":                {`{"monitoring": {"prometheus": {"account": "a"}}}`},
	"monitoring/prometheus/namespace":      {`{"monitoring": {"prometheus": {"namespace": ""}}}`},
	"monitoring/prometheus/serviceAccount": {`{"monitoring": {"prometheus": {"serviceAccount": 1}}}`},
	"global":                               {`{"global": "a"}`},
}

func TestABadValueIsAnErrorThatNamesIt(t *testing.T) {
	for path, bad := range badValues {
		for _, values := range bad {
			t.Run(values, func(t *testing.T) {
				arguments := []string{"template", "kubelet-guard", chart}
				if path != "image" {
					arguments = append(arguments, "--set=image="+image)
				}
				_, stderr, err := helm(t, values, arguments...)
				require.Error(t, err)
				want := "- at '/" + path
				if path == "" {
					want = "- at '': additional properties '"
				}
				if values == `{"image": null}` {
					want = "- at '': missing property 'image'"
				}
				require.Contains(t, stderr, want)
				require.Equal(t, 1, strings.Count(stderr, "\n- at '"), "nothing else is wrong: %s", stderr)
			})
		}
	}
}

func TestKubernetesBefore135IsRefused(t *testing.T) {
	_, stderr, err := helm(t, `{}`, "template", "kubelet-guard", chart, "--kube-version=1.34.9", "--set=image="+image)
	require.Error(t, err)
	require.Contains(t, stderr, "chart requires kubeVersion: >=1.35.0-0")
}

func TestLint(t *testing.T) {
	for _, values := range []string{`{}`, `{"mode": "Enforce", "canary": true, "rollout": true, "certManager": true, "callers": {"verify": true}, "monitoring": {"operator": true, "dashboard": true}}`} {
		stdout, stderr, err := helm(t, values, "lint", "--strict", chart, "--set=image="+image)
		require.NoError(t, err, stdout+stderr)
	}
}

func TestTheSchemaDocumentsEveryValue(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	require.NoError(t, err)
	var schema object
	require.NoError(t, json.Unmarshal(text, &schema))
	var paths []string
	var walk func(path string, o object)
	walk = func(path string, o object) {
		properties, ok := o["properties"].(object)
		if !ok {
			return
		}
		require.Equal(t, false, o["additionalProperties"], "%s: a misspelt value is an error", path)
		for name, value := range properties {
			at := strings.TrimPrefix(path+"/"+name, "/")
			p := value.(object)
			paths = append(paths, at)
			require.NotEmpty(t, p["description"], at)
			require.NotEmpty(t, p["type"], at)
			if p["default"] == nil {
				require.NotEmpty(t, p["properties"], "%s has no default", at)
				walk(at, p)
			}
		}
	}
	walk("", schema)
	tested := slices.Collect(maps.Keys(badValues))
	require.ElementsMatch(t, append(paths, ""), tested, "values of the schema, and values of which a bad one is tested")
}

func TestTheVersionIsThatOfTheRelease(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	require.NoError(t, err)
	var metadata struct{ Version, AppVersion string }
	require.NoError(t, yaml.Unmarshal(text, &metadata))
	require.Equal(t, release.Release, metadata.Version)
	require.Equal(t, release.Release, metadata.AppVersion)
}

func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := generate(root)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for path, want := range files {
		got, err := os.ReadFile(filepath.Join(chart, path))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), "%s: run make generate", path)
	}
	found, err := filepath.Glob(filepath.Join(chart, "files", "*.yaml"))
	require.NoError(t, err)
	policies, err := filepath.Glob(filepath.Join(chart, "files", "*", "*.yaml"))
	require.NoError(t, err)
	for _, file := range append(found, policies...) {
		path, err := filepath.Rel(chart, file)
		require.NoError(t, err)
		require.Contains(t, files, path, "nothing writes it: run make generate")
	}
}
