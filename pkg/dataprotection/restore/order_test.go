package restore

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"kubelet-guard.io/pkg/dataprotection/objects"
)

const testPrefix = "/registry/"

// item is one to be created, whose UID is its key.
func item(key, kind, namespace, name string, owners ...*Item) *Item {
	i := &Item{Action: Create, Key: testPrefix + key, Kind: kind, Namespace: namespace, Name: name, UID: key, value: &mvccpb.KeyValue{}}
	i.object = &objects.Object{Key: i.Key, GroupVersionKind: schema.GroupVersionKind{Version: "v1", Kind: kind}, Namespace: namespace, Name: name, UID: types.UID(key)}
	for _, owner := range owners {
		i.object.Owners = append(i.object.Owners, metav1.OwnerReference{UID: owner.object.UID, Name: owner.Name, Kind: owner.Kind})
	}
	return i
}

func custom(i *Item) *Item {
	i.object.Custom = true
	return i
}

func order(t *testing.T, items ...*Item) []string {
	t.Helper()
	p := &Plan{Items: items}
	require.NoError(t, p.sort(testPrefix))
	var keys []string
	for _, i := range p.Items {
		keys = append(keys, i.Key[len(testPrefix):])
	}
	return keys
}

func TestOwnersAreWrittenBeforeWhatTheyOwn(t *testing.T) {
	t.Parallel()
	deployment := item("deployments/shop/web", "Deployment", "shop", "web")
	replicaSet := item("replicasets/shop/web-1", "ReplicaSet", "shop", "web-1", deployment)
	pod := item("a-pod", "Pod", "shop", "web-1-a", replicaSet)
	require.Equal(t, []string{"deployments/shop/web", "replicasets/shop/web-1", "a-pod"}, order(t, pod, replicaSet, deployment))
}

func TestANamespaceIsWrittenLast(t *testing.T) {
	t.Parallel()
	namespace := item("namespaces/shop", "Namespace", "", "shop")
	deployment := item("deployments/shop/web", "Deployment", "shop", "web")
	replicaSet := item("replicasets/shop/web-1", "ReplicaSet", "shop", "web-1", deployment)
	other := item("zones/other", "Zone", "", "other")
	require.Equal(t, []string{"deployments/shop/web", "zones/other", "replicasets/shop/web-1", "namespaces/shop"}, order(t, namespace, replicaSet, other, deployment))
}

func TestADefinitionIsWrittenBetweenItsResourcesAndWhatTheyOwn(t *testing.T) {
	t.Parallel()
	definition := item(definitionFolder+"widgets.example.com", "CustomResourceDefinition", "", "widgets.example.com")
	widget := custom(item("example.com/widgets/default/a", "Widget", "default", "a"))
	part := custom(item("example.com/widgets/default/b", "Widget", "default", "b", widget))
	child := item("configmaps/default/child", "ConfigMap", "default", "child", widget)
	require.Equal(t, []string{"example.com/widgets/default/a", "example.com/widgets/default/b", definitionFolder + "widgets.example.com", "configmaps/default/child"},
		order(t, child, definition, part, widget))
}

func TestAPodIsWrittenAfterItsClaimAndTheVolumeAfterTheClaim(t *testing.T) {
	t.Parallel()
	claimNamed := func(name string, owners ...*Item) *Item {
		claim := item("persistentvolumeclaims/shop/"+name, "PersistentVolumeClaim", "shop", name, owners...)
		claim.object.Typed = &corev1.PersistentVolumeClaim{}
		return claim
	}
	pod := item("a-pod", "Pod", "shop", "a-pod")
	claim, owned := claimNamed("data"), claimNamed("owned", pod)
	volume := item("a-volume", "PersistentVolume", "", "a-volume")
	volume.object.Typed = &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{UID: claim.object.UID}}}
	spec := corev1.PodSpec{}
	for _, name := range []string{"data", "owned", "elsewhere"} {
		spec.Volumes = append(spec.Volumes, corev1.Volume{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
	}
	pod.object.Typed = &corev1.Pod{Spec: spec}
	require.Equal(t, []string{"persistentvolumeclaims/shop/data", "a-volume", "a-pod", "persistentvolumeclaims/shop/owned"}, order(t, pod, owned, volume, claim))
}

func TestACycleOfOwnersIsAnError(t *testing.T) {
	t.Parallel()
	a := item("configmaps/default/a", "ConfigMap", "default", "a")
	b := item("configmaps/default/b", "ConfigMap", "default", "b", a)
	a.object.Owners = []metav1.OwnerReference{{UID: b.object.UID}}
	require.ErrorContains(t, (&Plan{Items: []*Item{a, b}}).sort(testPrefix), "cycle")
}

func TestATransactionHasOneStageAndAtMostAHundredKeysOrOneMebibyte(t *testing.T) {
	t.Parallel()
	owner := item("owner", "ConfigMap", "default", "owner")
	p := &Plan{Items: []*Item{owner}}
	for i := range 250 {
		p.Items = append(p.Items, item("owned/"+string(rune('a'+i/26))+string(rune('a'+i%26)), "ConfigMap", "default", "x", owner))
	}
	for range 3 {
		large := item("zz", "Secret", "default", "large", owner)
		large.value.Value = make([]byte, 700<<10)
		p.Items = append(p.Items, large)
	}
	p.Items = append(p.Items, &Item{Action: LeaveOut}, &Item{Action: Present})
	require.NoError(t, p.sort(testPrefix))
	var sizes []int
	for _, batch := range p.batches() {
		sizes = append(sizes, len(batch))
	}
	require.Equal(t, []int{1, 100, 100, 51, 1, 1}, sizes)
}
