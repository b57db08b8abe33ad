package restore

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/pager"
)

// API is the API server of the etcd that is written: for checks before and after.
type API struct {
	discovery discovery.DiscoveryInterface
	kube      kubernetes.Interface
	metadata  metadata.Interface
	mapper    meta.RESTMapper
}

// NewAPI returns the clients of an API server that responds.
func NewAPI(config *rest.Config) (*API, error) {
	config = rest.CopyConfig(config)
	// One program, one administrator: a rate on top would only delay the checks.
	config.QPS = -1
	config.UserAgent = "guard-etcd"
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	a := &API{discovery: kube.Discovery(), kube: kube, metadata: metadataClient}
	groups, err := restmapper.GetAPIGroupResources(a.discovery)
	if err != nil && len(groups) == 0 {
		return nil, fmt.Errorf("the API server at %s: %w", config.Host, err)
	}
	a.mapper = restmapper.NewDiscoveryRESTMapper(groups)
	return a, nil
}

// mapping returns how a kind is served: in its version, or else in the preferred one. The API
// server stores some kinds in a version that it no longer serves
// (CustomResourceDefinition in v1beta1).
func (a *API) mapping(gvk schema.GroupVersionKind) (*meta.RESTMapping, error) {
	mapping, err := a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		return a.mapper.RESTMapping(gvk.GroupKind())
	}
	return mapping, err
}

// uid returns the UID of an object, or "" if there is none, or none of that kind.
func (a *API) uid(ctx context.Context, gvk schema.GroupVersionKind, namespace, name string) (types.UID, error) {
	mapping, err := a.mapping(gvk)
	if meta.IsNoMatchError(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		namespace = ""
	}
	o, err := a.getMetadata(ctx, mapping.Resource, namespace, name)
	if ignoreNotFound(err) != nil {
		return "", err
	}
	if err != nil {
		return "", nil
	}
	return o.UID, nil
}

// OwnerPresent reports whether the owner that a reference of an object in a namespace names is
// there, with its UID: as the garbage collector judges.
func (a *API) OwnerPresent(ctx context.Context, namespace string, owner metav1.OwnerReference) (bool, error) {
	uid, err := a.uid(ctx, schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind), namespace, owner.Name)
	return err == nil && uid == owner.UID, err
}

func (a *API) getMetadata(ctx context.Context, resource schema.GroupVersionResource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	return a.metadata.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

// services returns all Services.
func (a *API) services(ctx context.Context) ([]corev1.Service, error) {
	list, err := a.kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// uids returns the names of all objects of a resource by UID, in a namespace or in all.
func (a *API) uids(ctx context.Context, resource schema.GroupVersionResource, namespace string) (map[types.UID]types.NamespacedName, error) {
	found := map[types.UID]types.NamespacedName{}
	p := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return a.metadata.Resource(resource).Namespace(namespace).List(ctx, options)
	})
	err := p.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		object := o.(*metav1.PartialObjectMetadata)
		found[object.UID] = types.NamespacedName{Namespace: object.Namespace, Name: object.Name}
		return nil
	})
	return found, err
}
