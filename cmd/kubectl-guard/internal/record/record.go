// Package record writes PodDeletion records: the proof, for the kubelet of a held
// pod whose object is gone, that the deletion of the pod was requested.
package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Resource of the records; manifests/crds defines it.
var Resource = guardv1alpha1.GroupVersion.WithResource("poddeletions")

// Kind of the records.
const Kind = guardv1alpha1.PodDeletionKind

// PodDeletion is one record. Its name is the pod's UID.
type PodDeletion = guardv1alpha1.PodDeletion

// Spec is for humans, except for the clean-up of expired records.
type Spec = guardv1alpha1.PodDeletionSpec

// New returns the record of the pod with the UID.
func New(uid types.UID, spec Spec) *PodDeletion {
	return &PodDeletion{
		TypeMeta:   metav1.TypeMeta{APIVersion: Resource.GroupVersion().String(), Kind: Kind},
		ObjectMeta: metav1.ObjectMeta{Name: string(uid)},
		Spec:       spec,
	}
}

// Client reads and writes records.
type Client struct {
	Kube kubernetes.Interface
	// FieldManager of what is written.
	FieldManager string
}

// path is that of the records, below which each is by its name.
var path = "/apis/" + Resource.GroupVersion().String() + "/" + Resource.Resource

// Create writes the record. It reports false without an error when there is one
// for the UID already: that is as good. dryRun has the server check it only.
func (c Client) Create(ctx context.Context, record *PodDeletion, dryRun bool) (bool, error) {
	body, err := json.Marshal(record)
	if err != nil {
		return false, fmt.Errorf("convert %s %s: %w", Kind, record.Name, err)
	}
	request := c.Kube.CoreV1().RESTClient().Post().AbsPath(path).Param("fieldManager", c.FieldManager).
		SetHeader("Content-Type", runtime.ContentTypeJSON).Body(body)
	if dryRun {
		request.Param("dryRun", metav1.DryRunAll)
	}
	switch err := request.Do(ctx).Error(); {
	case apierrors.IsAlreadyExists(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write %s %s: %w", Kind, record.Name, explain(err))
	}
	return true, nil
}

// ErrNoDefinition: the cluster does not know PodDeletion objects.
var ErrNoDefinition = errors.New("this cluster does not know " + Kind + " objects")

// Find returns the record of the pod with the UID, or nil when there is none. In
// a cluster without the definition, the error is ErrNoDefinition.
func (c Client) Find(ctx context.Context, uid types.UID) (*PodDeletion, error) {
	result := c.Kube.CoreV1().RESTClient().Get().AbsPath(path, string(uid)).SetHeader("Accept", runtime.ContentTypeJSON).Do(ctx)
	switch err := result.Error(); {
	case missingResource(err):
		return nil, ErrNoDefinition
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get %s %s: %w", Kind, uid, err)
	}
	body, err := result.Raw()
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", Kind, uid, err)
	}
	var record PodDeletion
	if err := json.Unmarshal(body, &record); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", Kind, uid, err)
	}
	return &record, nil
}

// Expiry returns a time as records have it.
func Expiry(now time.Time, ttl time.Duration) *metav1.Time {
	expires := metav1.NewTime(now.Add(ttl).UTC().Truncate(time.Second))
	return &expires
}

// explain adds what to do about the error that a cluster without the definition
// gives.
func explain(err error) error {
	if missingResource(err) {
		return fmt.Errorf("%w; apply the project's manifests (kubectl apply -k manifests/), or release the pod on its node with a file named after its UID in <kubelet root dir>/guard/release", ErrNoDefinition)
	}
	return err
}

// missingResource reports whether the path was unknown to the API server. A
// missing object has details with its name instead.
func missingResource(err error) bool {
	if _, unexpected := apierrors.StatusCause(err, metav1.CauseTypeUnexpectedServerResponse); unexpected {
		return apierrors.IsNotFound(err)
	}
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details == nil || details.Name == "" && details.Kind == ""
}
