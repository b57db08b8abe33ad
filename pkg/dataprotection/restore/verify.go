package restore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// servedTimeout is how long the API server may take to serve a definition that was
	// written: it does within a second, unless it is overloaded.
	servedTimeout  = time.Minute
	servedInterval = 50 * time.Millisecond
)

// WaitServed returns when the API server serves the custom resources among the written items
// whose definitions are among them. The garbage collector reads owners through the API, and
// deletes what they own if it responds that there is no such owner.
func (p *Plan) WaitServed(ctx context.Context, api *API, prefix string, written []*Item) error {
	instances := map[string]*Item{}
	for _, item := range written {
		if item.object.Custom {
			instances[definitionOf(prefix, item.Key)] = item
		}
	}
	for _, item := range written {
		name, ok := strings.CutPrefix(item.Key, prefix+definitionFolder)
		if !ok || instances[name] == nil {
			continue
		}
		if err := waitServed(ctx, api, prefix, instances[name]); err != nil {
			return err
		}
	}
	return nil
}

func waitServed(ctx context.Context, api *API, prefix string, item *Item) error {
	resource := resourceOfCustom(item, prefix)
	var last error
	err := wait.PollUntilContextTimeout(ctx, servedInterval, servedTimeout, true, func(ctx context.Context) (bool, error) {
		o, err := api.getMetadata(ctx, resource, item.Namespace, item.Name)
		last = err
		return err == nil && o.UID == item.object.UID, nil
	})
	if err != nil {
		return fmt.Errorf("the API server does not serve %s after %s: %w (last: %v)", resource.GroupResource(), servedTimeout, err, last)
	}
	return nil
}

// resourceOfCustom is the resource of a custom resource, whose key has it.
func resourceOfCustom(item *Item, prefix string) schema.GroupVersionResource {
	folders := strings.SplitN(strings.TrimPrefix(item.Key, prefix), "/", 3)
	return schema.GroupVersionResource{Group: folders[0], Version: item.object.Version, Resource: folders[1]}
}

// Verify reads through the API what the plan wrote or found present, and returns the objects
// that it does not have, or has with another UID.
func (p *Plan) Verify(ctx context.Context, api *API, prefix string) ([]*Item, error) {
	type collection struct {
		resource  schema.GroupVersionResource
		namespace string
	}
	collections := map[collection][]*Item{}
	for _, item := range p.Items {
		if !item.written() && item.Action != Present {
			continue
		}
		c := collection{namespace: item.Namespace}
		if item.object.Custom {
			c.resource = resourceOfCustom(item, prefix)
		} else {
			mapping, err := api.mapping(item.object.GroupVersionKind)
			if err != nil {
				return nil, err
			}
			c.resource = mapping.Resource
		}
		collections[c] = append(collections[c], item)
	}
	var missing []*Item
	for c, items := range collections {
		if items[0].object.Custom {
			// A definition that was written just now is served in a moment.
			if err := waitServed(ctx, api, prefix, items[0]); err != nil {
				return nil, err
			}
		}
		found, err := listUIDs(ctx, api, c.resource, c.namespace)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			if found[types.UID(item.UID)] != item.name() {
				missing = append(missing, item)
			}
		}
	}
	return missing, nil
}

// listUIDs lists a collection, again if the API server is too busy to respond.
func listUIDs(ctx context.Context, api *API, resource schema.GroupVersionResource, namespace string) (found map[types.UID]types.NamespacedName, err error) {
	var last error
	err = wait.PollUntilContextTimeout(ctx, time.Second, servedTimeout, true, func(ctx context.Context) (bool, error) {
		found, last = api.uids(ctx, resource, namespace)
		return last == nil, nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w (last: %v)", resource.GroupResource(), err, last)
	}
	return found, nil
}
