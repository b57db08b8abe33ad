package dataprotection

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/cluster/pki"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// changed is an annotation that objects get after the backup.
const changed = "example.com/changed"

// nodeCluster is a cluster of one guarded node that runs pods. The steps of the drill work on its
// control plane.
type nodeCluster struct {
	*drill
	cluster  *embedded.Cluster
	metadata metadata.Interface
	kubectl  framework.Kubectl
}

// newNodeCluster starts a cluster, which the end of the test removes.
func newNodeCluster(t *testing.T) *nodeCluster {
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	programs := filepath.Join(*output, framework.KubeVersion)
	dir := filepath.Join(*output, "clusters", "compare")
	cluster, err := embedded.Start(ctx, embedded.Config{
		Name: "compare", Dir: dir, KubeDir: programs, NodeDir: filepath.Join(*output, "node", "bin"),
		Kubelet: filepath.Join(*output, "bin", "kubelet"), Log: t.Output(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Stop(context.Background())) })
	config := cluster.RESTConfig()
	c := &controlPlane{
		t: t, dir: t.TempDir(), etcd: cluster.Etcd().Endpoint, config: config,
		pki:  pki.Dir(filepath.Join(dir, "pki")),
		kube: kubernetes.NewForConfigOrDie(config), dynamic: dynamic.NewForConfigOrDie(config),
	}
	n := &nodeCluster{
		drill: &drill{controlPlane: c, journal: filepath.Join(c.dir, "journal")}, cluster: cluster,
		metadata: metadata.NewForConfigOrDie(config),
		kubectl:  framework.Kubectl{Program: filepath.Join(programs, "kubectl"), Kubeconfig: cluster.Kubeconfig()},
	}
	n.connectEtcd()
	// guard-etcd finds both as on a kubeadm host.
	kubeconfig, err := os.ReadFile(cluster.Kubeconfig())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(c.kubeconfig(), kubeconfig, 0o600))
	tls := cluster.Etcd().TLS
	c.writeManifestOf([]string{"--etcd-servers=" + c.etcd, "--etcd-cafile=" + tls.CAFile, "--etcd-certfile=" + tls.CertFile, "--etcd-keyfile=" + tls.KeyFile})
	return n
}

// connectEtcd makes the client of etcd, also after etcd was replaced.
func (n *nodeCluster) connectEtcd() {
	n.root = n.etcdClientOf(n.certificateOf("apiserver-etcd-client"), "etcd/ca")
}

// runKubectl expects success.
func (n *nodeCluster) runKubectl(arguments ...string) string {
	n.t.Helper()
	r := n.kubectl.Run(context.Background(), arguments...)
	require.NoError(n.t, r.Err, r.String())
	return r.Stdout
}

// podTemplate is one of protected pods, or of pods without the label.
func podTemplate(app string, protected bool) corev1.PodTemplateSpec {
	labels := framework.AppLabels(app)
	if protected {
		labels[guardv1alpha1.ExplicitDeletionLabel] = guardv1alpha1.ExplicitDeletionRequired
	}
	return framework.NewPodTemplate(labels, framework.NewContainer(framework.WorkloadContainer, framework.WorkloadPort))
}

func (n *nodeCluster) createNamespaceOnly(name string) {
	_, err := n.kube.CoreV1().Namespaces().Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	require.NoError(n.t, err)
}

func (n *nodeCluster) createDeployment(namespace, app string, replicas int, protected bool) {
	_, err := n.kube.AppsV1().Deployments(namespace).Create(context.Background(), framework.NewDeployment(app, replicas, podTemplate(app, protected)), metav1.CreateOptions{})
	require.NoError(n.t, err)
}

func (n *nodeCluster) createStatefulSet(namespace string, set *appsv1.StatefulSet) {
	_, err := n.kube.AppsV1().StatefulSets(namespace).Create(context.Background(), set, metav1.CreateOptions{})
	require.NoError(n.t, err)
}

// awaitReady waits until an app has so many pods, and all of them run and are ready. A restored
// status is old, and does not count.
func (n *nodeCluster) awaitReady(namespace, app string, replicas int) {
	n.t.Helper()
	n.await(fmt.Sprintf("%d ready pods of %s", replicas, app), func(ctx context.Context) error {
		pods, err := n.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		ready, running := 0, n.containers()
		for i := range pods.Items {
			pod := &pods.Items[i]
			container, runs := running[pod.UID]
			if runs && testnode.PodReady(pod) && pod.DeletionTimestamp == nil && pod.Status.ContainerStatuses[0].ContainerID == "containerd://"+container.ID {
				ready++
			}
		}
		if ready != replicas || len(pods.Items) != replicas {
			return fmt.Errorf("%d of %d pods are ready", ready, len(pods.Items))
		}
		return nil
	})
}

// awaitNode waits until the node is ready.
func (n *nodeCluster) awaitNode() {
	n.await("the node to be ready", func(ctx context.Context) error {
		node, err := n.kube.CoreV1().Nodes().Get(ctx, n.cluster.NodeName(), metav1.GetOptions{})
		if err == nil && !testnode.NodeReady(node) {
			err = fmt.Errorf("its conditions are %v", node.Status.Conditions)
		}
		return err
	})
}

// containers returns the running containers by the UIDs of their pods, which have one each.
func (n *nodeCluster) containers() map[types.UID]testnode.Container {
	list, err := n.cluster.Containerd().Containers(context.Background())
	require.NoError(n.t, err)
	running := map[types.UID]testnode.Container{}
	for _, container := range list {
		running[types.UID(container.PodUID)] = container
	}
	return running
}

// protectedPod reports whether a container is of a pod with the label: the names of others say so.
func protectedPod(c testnode.Container) bool { return !strings.Contains(c.PodName, "plain") }

// endedOf returns those of the containers whose process has ended.
func (n *nodeCluster) endedOf(containers map[types.UID]testnode.Container) []testnode.Container {
	var ended []testnode.Container
	for _, uid := range slices.Sorted(maps.Keys(containers)) {
		alive, err := containers[uid].Process.Alive()
		require.NoError(n.t, err)
		if !alive {
			ended = append(ended, containers[uid])
		}
	}
	return ended
}

// identity is what must not change of an object.
type identity struct {
	uid            types.UID
	changed, owned bool
}

// remade are the resources that are not compared: events and leases expire, pods are compared by
// their processes, and the rest is what control plane and node make again for others.
var remade = []string{"events", "leases", "pods", "endpoints", "endpointslices", "ipaddresses", "apiservices", "nodes", "csinodes", "componentstatuses"}

// census returns all objects of the API by resource, namespace and name.
func (n *nodeCluster) census() map[string]identity {
	ctx := context.Background()
	lists, err := discovery.NewDiscoveryClientForConfigOrDie(n.config).ServerPreferredResources()
	require.NoError(n.t, err)
	found := map[string]identity{}
	for _, list := range lists {
		group, err := schema.ParseGroupVersion(list.GroupVersion)
		require.NoError(n.t, err)
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || slices.Contains(remade, r.Name) {
				continue
			}
			objects, err := n.metadata.Resource(group.WithResource(r.Name)).List(ctx, metav1.ListOptions{})
			require.NoError(n.t, err, r.Name)
			for _, o := range objects.Items {
				found[r.Name+"."+group.Group+" "+o.Namespace+"/"+o.Name] = identity{o.UID, o.Annotations[changed] != "", len(o.OwnerReferences) > 0}
			}
		}
	}
	return found
}

// writeFile writes a file into the test's folder.
func (n *nodeCluster) writeFile(name string, content []byte) string {
	path := filepath.Join(n.dir, name)
	require.NoError(n.t, os.WriteFile(path, content, 0o600))
	return path
}

// export is what kubectl get prints, without what a cluster does not take over from another:
// status, UIDs, versions, owner references and the marks of a bound claim. Objects that
// controllers make in each namespace are left out.
func (n *nodeCluster) export(name string, arguments ...string) string {
	n.t.Helper()
	var list struct {
		APIVersion string           `json:"apiVersion"`
		Kind       string           `json:"kind"`
		Items      []map[string]any `json:"items"`
	}
	require.NoError(n.t, json.Unmarshal([]byte(n.runKubectl(append([]string{"get", "-o", "json"}, arguments...)...)), &list))
	list.Items = slices.DeleteFunc(list.Items, func(o map[string]any) bool {
		name := o["metadata"].(map[string]any)["name"]
		return name == "kube-root-ca.crt" || name == "kubernetes"
	})
	for _, o := range list.Items {
		delete(o, "status")
		meta := o["metadata"].(map[string]any)
		for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "ownerReferences"} {
			delete(meta, field)
		}
		if annotations, ok := meta["annotations"].(map[string]any); ok {
			delete(annotations, "pv.kubernetes.io/bind-completed")
			delete(annotations, "pv.kubernetes.io/bound-by-controller")
		}
	}
	content, err := json.Marshal(list)
	require.NoError(n.t, err)
	return n.writeFile(name, content)
}

// awaitWithin is await for what may never happen: it reports whether it did.
func awaitWithin(limit time.Duration, probe func() bool) bool {
	for start := time.Now(); time.Since(start) < limit; time.Sleep(pollInterval) {
		if probe() {
			return true
		}
	}
	return probe()
}
