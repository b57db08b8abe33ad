package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// PodDeletion records: cluster-scoped, named by the UID of the pod whose deletion
// they prove. manifests/crds has their definition, pkg/apis/guard/v1alpha1 their
// types, which this package may not import: it is built in the kubelet's tree, too.
const (
	deletionsPath       = "/apis/" + deletionAPIVersion + "/poddeletions"
	deletionAPIVersion  = "kubelet-guard.io/v1alpha1"
	deletionKind        = "PodDeletion"
	deletionListKind    = "PodDeletionList"
	deletionOfNodeField = "spec.nodeName="
)

// Deletions reads PodDeletion records. DeletionRecord.check decides whether a returned
// record proves anything.
type Deletions interface {
	// OfNode returns the records of the pods that were bound to the node. They may be some
	// seconds old. ErrDeletionsNotListed: the server only serves single records.
	OfNode(ctx context.Context, node string) ([]DeletionRecord, error)
	// Of returns the record with the name of the UID, or nil when there is none.
	Of(ctx context.Context, uid types.UID) (*DeletionRecord, error)
}

// ErrDeletionsNotListed: this node may not list records, or the server does not know
// that they can be selected by node. Single records may be readable.
var ErrDeletionsNotListed = errors.New("the PodDeletion records of a node cannot be listed")

// ErrDeletionsUnknown: the server has no such resource, so there are no records.
var ErrDeletionsUnknown = errors.New("the API server knows no PodDeletion records")

// DeletionRecord has the fields of a PodDeletion that the kubelet uses.
type DeletionRecord struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name              string       `json:"name"`
		DeletionTimestamp *metav1.Time `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"spec"`
}

// deletionRecordList is a list of them.
type deletionRecordList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []DeletionRecord `json:"items"`
}

// check returns why the record does not prove the deletion of the pod. A proxy in front
// of an API server may have responded in its place.
func (d *DeletionRecord) check(namespace, name string, uid types.UID) error {
	switch {
	case d.APIVersion != deletionAPIVersion || d.Kind != deletionKind:
		return fmt.Errorf("it is of kind %q in %q, not %s in %s", d.Kind, d.APIVersion, deletionKind, deletionAPIVersion)
	case d.Metadata.Name != string(uid):
		return fmt.Errorf("its name is %q, not the UID of the pod", d.Metadata.Name)
	case d.Metadata.DeletionTimestamp != nil:
		return errors.New("it is itself being deleted")
	case d.Spec.Namespace != namespace || d.Spec.Name != name:
		return fmt.Errorf("it names pod %s/%s", d.Spec.Namespace, d.Spec.Name)
	}
	return nil
}

// NewDeletions returns Deletions that queries the API server with the client's
// credentials. They need the verbs get and list on poddeletions.
func NewDeletions(client rest.Interface) Deletions { return deletionClient{client} }

type deletionClient struct{ client rest.Interface }

func (d deletionClient) OfNode(ctx context.Context, node string) ([]DeletionRecord, error) {
	// Resource version 0: out of the server's cache, which costs the storage nothing.
	body, err := d.get(ctx, d.client.Get().AbsPath(deletionsPath).
		Param("fieldSelector", deletionOfNodeField+node).Param("resourceVersion", "0"))
	switch {
	case apierrors.IsNotFound(err):
		return nil, ErrDeletionsUnknown
	case apierrors.IsForbidden(err), apierrors.IsBadRequest(err), apierrors.IsMethodNotSupported(err):
		return nil, fmt.Errorf("%w: %w", ErrDeletionsNotListed, err)
	case err != nil:
		return nil, err
	}
	var list deletionRecordList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("the response is no list of PodDeletions: %w: %s", err, excerpt(body))
	}
	if list.APIVersion != deletionAPIVersion || list.Kind != deletionListKind {
		return nil, fmt.Errorf("the response is of kind %q in %q, not %s in %s", list.Kind, list.APIVersion, deletionListKind, deletionAPIVersion)
	}
	return list.Items, nil
}

func (d deletionClient) Of(ctx context.Context, uid types.UID) (*DeletionRecord, error) {
	body, err := d.get(ctx, d.client.Get().AbsPath(deletionsPath, string(uid)))
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	record := &DeletionRecord{}
	if err := json.Unmarshal(body, record); err != nil {
		return nil, fmt.Errorf("the response is no PodDeletion: %w: %s", err, excerpt(body))
	}
	return record, nil
}

// get makes one attempt. The kubelet's client requests protobuf, which records do not
// have, and it would itself retry what a busy server refuses.
func (d deletionClient) get(ctx context.Context, request *rest.Request) ([]byte, error) {
	result := request.SetHeader("Accept", "application/json").MaxRetries(0).Do(ctx)
	// Error, unlike Raw, has the message of the API server.
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

// excerpt returns enough of a response to recognize a proxy's page.
func excerpt(body []byte) string {
	const shown = 80
	if len(body) > shown {
		return fmt.Sprintf("%q...", body[:shown])
	}
	return fmt.Sprintf("%q", body)
}

// Vanished reports whether the pod is held because its object is gone. The API server
// refuses the kubelet's reads for such a pod.
func (g *Guard) Vanished(uid types.UID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.records[uid]
	return r != nil && r.evidence == nil && r.holds[PodVanished] != nil
}

// mountPatience is how long a sync of a vanished pod waits for its volumes.
const mountPatience = 3 * time.Second

// MountContext returns the context for waiting for the volumes of a pod: some of a
// vanished one can never be mounted, and its sync has to continue.
func (g *Guard) MountContext(ctx context.Context, uid types.UID) (context.Context, context.CancelFunc) {
	if !g.Vanished(uid) {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, mountPatience, fmt.Errorf("the object of pod %s is gone from the API", uid))
}
