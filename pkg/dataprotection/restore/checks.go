package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

// checks refuses what must not be written, all at once.
type checks struct {
	plan    *Plan
	decoder *objects.Decoder
	prefix  string
	current *history.Live
	// api is nil when the API server does not respond.
	api *API

	written map[types.UID]*Item
}

func (c *checks) run(ctx context.Context) error {
	c.written = map[types.UID]*Item{}
	for _, item := range c.plan.Items {
		if item.written() || item.Action == Present {
			c.written[item.object.UID] = item
		}
	}
	steps := []func(context.Context) error{c.namespaces, c.definitions}
	if c.api != nil {
		steps = append(steps, c.kinds, c.owners, c.uids, c.addresses)
	} else {
		c.plan.Unchecked = "owners, served kinds, UIDs in use and addresses of Services"
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// each calls check for the items that would be written.
func (c *checks) each(check func(*Item) error) error {
	for _, item := range c.plan.Items {
		if item.written() {
			if err := check(item); err != nil {
				return err
			}
		}
	}
	return nil
}

// after returns what a key will hold after the restore: from the plan, else as it is; nil for
// nothing that lasts.
func (c *checks) after(ctx context.Context, key string) (*objects.Object, error) {
	for _, item := range c.plan.Items {
		if item.Key == key && (item.written() || item.Action == Present) {
			return item.object, nil
		}
	}
	kv, err := c.current.Get(ctx, key, 0)
	if err != nil || kv == nil {
		return nil, err
	}
	object, err := c.decoder.Decode(ctx, key, kv.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if object.Terminating != nil {
		return nil, nil
	}
	return object, nil
}

// namespaces: nothing is written into a namespace that is not there.
func (c *checks) namespaces(ctx context.Context) error {
	there := map[string]bool{}
	return c.each(func(item *Item) error {
		if item.Namespace == "" {
			return nil
		}
		exists, known := there[item.Namespace]
		if !known {
			namespace, err := c.after(ctx, c.prefix+"namespaces/"+item.Namespace)
			if err != nil {
				return err
			}
			exists = namespace != nil
			there[item.Namespace] = exists
		}
		if !exists {
			item.refuse("the namespace %s is not there, or terminating; restore namespace/%s", item.Namespace, item.Namespace)
		}
		return nil
	})
}

// definitions: a custom resource needs its definition, with its version.
func (c *checks) definitions(ctx context.Context) error {
	definitions := map[string][]string{}
	return c.each(func(item *Item) error {
		if !item.object.Custom {
			return nil
		}
		// A definition's group has a dot, and is the folder of its resources.
		if group, _, _ := strings.Cut(strings.TrimPrefix(item.Key, c.prefix), "/"); !strings.Contains(group, ".") {
			item.refuse("%s %s is of no kind that this program knows, and of no definition: use the guard-etcd of the API server's version", item.APIVersion, item.Kind)
			return nil
		}
		name := definitionOf(c.prefix, item.Key)
		versions, known := definitions[name]
		if !known {
			object, err := c.after(ctx, c.prefix+definitionFolder+name)
			if err != nil {
				return err
			}
			if object != nil {
				versions = versionsOf(object.Typed)
			}
			definitions[name] = versions
		}
		switch {
		case len(versions) == 0:
			item.refuse("its definition %s is not there; restore crd/%s", name, name)
		case !slices.Contains(versions, item.object.Version):
			item.refuse("it is stored as %s, a version that its definition %s does not have", item.APIVersion, name)
		}
		return nil
	})
}

// versionsOf returns the versions of a definition. The API server stores definitions as v1beta1.
func versionsOf(definition runtime.Object) (versions []string) {
	switch d := definition.(type) {
	case *apiextensionsv1.CustomResourceDefinition:
		for _, v := range d.Spec.Versions {
			versions = append(versions, v.Name)
		}
	case *apiextensionsv1beta1.CustomResourceDefinition:
		if d.Spec.Version != "" {
			versions = append(versions, d.Spec.Version)
		}
		for _, v := range d.Spec.Versions {
			versions = append(versions, v.Name)
		}
	}
	return versions
}

// kinds: the API server must serve what is written, in whatever version. The version it is stored
// in need not be served, only known: what the API server wrote in this cluster it can read.
func (c *checks) kinds(context.Context) error {
	return c.each(func(item *Item) error {
		if item.object.Custom {
			return nil
		}
		_, err := c.api.mapping(item.object.GroupVersionKind)
		if meta.IsNoMatchError(err) {
			item.refuse("this API server does not serve its kind (%s %s)", item.APIVersion, item.Kind)
			return nil
		}
		return err
	})
}

// owners: the garbage collector deletes an object whose owners are all gone.
func (c *checks) owners(ctx context.Context) error {
	there := map[types.UID]bool{}
	return c.each(func(item *Item) error {
		var missing []string
		for _, owner := range item.object.Owners {
			if c.written[owner.UID] != nil {
				return nil
			}
			exists, known := there[owner.UID]
			if !known {
				var err error
				if exists, err = c.api.OwnerPresent(ctx, item.Namespace, owner); err != nil {
					return fmt.Errorf("reading the owner of %s: %w", item, err)
				}
				there[owner.UID] = exists
			}
			if exists {
				return nil
			}
			missing = append(missing, owner.Kind+" "+owner.Name)
		}
		if len(missing) > 0 {
			item.refuse("its owner is neither there nor restored with it: %s", strings.Join(missing, ", "))
		}
		return nil
	})
}

// uids: no two objects of a kind have a UID. A backup that was imported under another name keeps
// it in some tools.
func (c *checks) uids(ctx context.Context) error {
	used := map[schema.GroupVersionResource]map[types.UID]types.NamespacedName{}
	return c.each(func(item *Item) error {
		mapping, err := c.api.mapping(item.object.GroupVersionKind)
		if meta.IsNoMatchError(err) {
			return nil // not served, as without its definition, so that it has no objects
		}
		if err != nil {
			return err
		}
		uids, known := used[mapping.Resource]
		if !known {
			if uids, err = c.api.uids(ctx, mapping.Resource, ""); err != nil {
				return fmt.Errorf("listing %s: %w", mapping.Resource.GroupResource(), err)
			}
			used[mapping.Resource] = uids
		}
		if holder, inUse := uids[item.object.UID]; inUse && holder != item.name() {
			item.refuse("its UID %s is in use by %s %s", item.UID, item.Kind, strings.TrimPrefix(holder.String(), "/"))
		}
		return nil
	})
}

// addresses: no two Services have a cluster IP or a node port.
func (c *checks) addresses(ctx context.Context) error {
	var used map[string]string
	return c.each(func(item *Item) error {
		service, ok := item.object.Typed.(*corev1.Service)
		if !ok {
			return nil
		}
		if used == nil {
			services, err := c.api.services(ctx)
			if err != nil {
				return fmt.Errorf("reading Services: %w", err)
			}
			used = map[string]string{}
			for i := range services {
				for _, address := range addressesOf(&services[i]) {
					used[address] = services[i].Namespace + "/" + services[i].Name
				}
			}
		}
		for _, address := range addressesOf(service) {
			if holder := used[address]; holder != "" && holder != item.Namespace+"/"+item.Name {
				item.refuse("its %s is in use by Service %s", address, holder)
			}
		}
		return nil
	})
}

func addressesOf(service *corev1.Service) []string {
	var list []string
	for _, ip := range service.Spec.ClusterIPs {
		if ip != "" && ip != corev1.ClusterIPNone {
			list = append(list, "cluster IP "+ip)
		}
	}
	for _, port := range service.Spec.Ports {
		if port.NodePort != 0 {
			list = append(list, fmt.Sprintf("node port %d/%s", port.NodePort, port.Protocol))
		}
	}
	return list
}

// ErrOtherCluster says that a snapshot is not of the cluster that would be written.
var ErrOtherCluster = errors.New("the snapshot is of another cluster")

// CheckCluster compares the UID of the namespace kube-system, which a cluster has for life.
func CheckCluster(ctx context.Context, decoder *objects.Decoder, prefix string, from *history.File, current *history.Live) error {
	key := prefix + "namespaces/kube-system"
	there, err := from.Get(ctx, key, from.Bounds().Newest)
	if err != nil {
		return err
	}
	if there == nil {
		return noKubernetes(from, prefix)
	}
	here, err := current.Get(ctx, key, 0)
	if err != nil {
		return err
	}
	if here == nil {
		return fmt.Errorf("etcd has no %s: either the prefix is another (--etcd-prefix), or the cluster is new, and a whole restore by etcdutl is what it needs", key)
	}
	source, err := decoder.Decode(ctx, key, there.Value)
	if err != nil {
		return fmt.Errorf("%s in the snapshot: %w", key, err)
	}
	target, err := decoder.Decode(ctx, key, here.Value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if source.UID != target.UID {
		return fmt.Errorf("%w: the namespace kube-system has the UID %s in it and %s here", ErrOtherCluster, source.UID, target.UID)
	}
	return nil
}

// noKubernetes names the prefixes that a file has.
func noKubernetes(from *history.File, prefix string) error {
	var prefixes []string
	for _, key := range from.Keys() {
		if before, _, found := strings.Cut(key, "namespaces/kube-system"); found && !slices.Contains(prefixes, before) {
			prefixes = append(prefixes, before)
		}
	}
	if len(prefixes) > 0 {
		return fmt.Errorf("the snapshot has no keys of a cluster under %s, but under %s: --etcd-prefix", prefix, strings.Join(prefixes, " and "))
	}
	return fmt.Errorf("the snapshot has no keys of a cluster under %s (--etcd-prefix)", prefix)
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
