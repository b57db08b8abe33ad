package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/rollout"
)

// HistoryAnnotation on a DaemonSet has the requests that were made of the pool, newest
// last. The one in the template is another while installers only inspect.
const HistoryAnnotation = guardv1alpha1.GroupName + "/rollout-history"

// historyLength bounds how far undo goes back.
const historyLength = 5

// poolOf reads a pool from its DaemonSet.
func poolOf(set *appsv1.DaemonSet) (*Pool, error) {
	pool, err := rollout.PoolOf(set)
	if err != nil {
		return nil, err
	}
	p := &Pool{Pool: pool, Set: set}
	request, err := rollout.RequestOf(set)
	if err != nil {
		return nil, err
	}
	if data, kept := set.Annotations[HistoryAnnotation]; kept {
		if err := json.Unmarshal([]byte(data), &p.History); err != nil {
			return nil, fmt.Errorf("daemonset %s/%s: annotation %s: %w", set.Namespace, set.Name, HistoryAnnotation, err)
		}
	}
	// The template may have been changed by another user.
	if current := p.Current(); request.Target != rollout.Observe && (current == nil || current.ID() != request.ID()) {
		p.History = AppendHistory(p.History, request)
	}
	return p, nil
}

// AppendHistory is the history with another request.
func AppendHistory(history []rollout.Request, request rollout.Request) []rollout.Request {
	history = append(slices.Clone(history), request)
	for i := range history[:len(history)-1] {
		// A yes is for one time.
		history[i].ReleaseHeldUIDs, history[i].ReleaseHeld = nil, false
	}
	return history[max(0, len(history)-historyLength):]
}

// Apply writes the request into the DaemonSet of a pool, and keeps the history. With
// dry, the API server checks it only.
func (p *Pool) Apply(ctx context.Context, kube kubernetes.Interface, request rollout.Request, history []rollout.Request, dry bool) error {
	wanted, err := daemonSet(p.Pool, request, history)
	if err != nil {
		return err
	}
	wanted.Annotations[rollout.StartedAnnotation] = time.Now().UTC().Format(time.RFC3339)
	var dryRun []string
	if dry {
		dryRun = []string{metav1.DryRunAll}
	}
	sets := kube.AppsV1().DaemonSets(rollout.Namespace)
	var written *appsv1.DaemonSet
	if p.Set == nil {
		written, err = sets.Create(ctx, wanted, metav1.CreateOptions{FieldManager: factory.FieldManager, DryRun: dryRun})
	} else {
		err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
			set, err := sets.Get(ctx, wanted.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if err := checkUnchanged(p, set); err != nil {
				return err
			}
			set.Spec = wanted.Spec
			for key, value := range wanted.Annotations {
				metav1.SetMetaDataAnnotation(&set.ObjectMeta, key, value)
			}
			// The new request starts at once.
			delete(set.Annotations, rollout.PausedAnnotation)
			written, err = sets.Update(ctx, set, metav1.UpdateOptions{FieldManager: factory.FieldManager, DryRun: dryRun})
			return err
		})
	}
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("pool %s: %w; apply the manifests of the roll-out: kubectl apply -k manifests/rollout", p.Name, err)
	case err != nil:
		return fmt.Errorf("pool %s: write DaemonSet %s: %w", p.Name, wanted.Name, err)
	}
	if !dry {
		p.Set, p.History = written, history
	}
	return nil
}

// checkUnchanged returns an error when another user has changed the request of the pool since
// it was read: the plan that was confirmed was for something else.
func checkUnchanged(p *Pool, set *appsv1.DaemonSet) error {
	was, err := rollout.RequestOf(p.Set)
	if err != nil {
		return err
	}
	is, err := rollout.RequestOf(set)
	if err != nil {
		return err
	}
	if is.ID() != was.ID() || set.UID != p.Set.UID {
		return fmt.Errorf("another user has changed it meanwhile: its request is %s; see kubectl guard rollout status, and start again", DescribeRequest(is))
	}
	return nil
}

// daemonSet is the DaemonSet of a pool with its history.
func daemonSet(pool rollout.Pool, request rollout.Request, history []rollout.Request) (*appsv1.DaemonSet, error) {
	set, err := rollout.DaemonSet(pool, request)
	if err != nil {
		return nil, err
	}
	if request.Target == rollout.Observe {
		// Installers that only inspect change nothing: all may be replaced at once.
		set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromString("100%"))
	}
	if history == nil {
		history = []rollout.Request{}
	}
	data, err := json.Marshal(history)
	if err != nil {
		return nil, fmt.Errorf("pool %s: its history: %w", pool.Name, err)
	}
	set.Annotations = map[string]string{HistoryAnnotation: string(data)}
	return set, nil
}

// Update changes the DaemonSet of a pool.
func (p *Pool) Update(ctx context.Context, kube kubernetes.Interface, change func(*appsv1.DaemonSet)) error {
	sets := kube.AppsV1().DaemonSets(rollout.Namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		set, err := sets.Get(ctx, p.Set.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(set)
		p.Set, err = sets.Update(ctx, set, metav1.UpdateOptions{FieldManager: factory.FieldManager})
		return err
	})
	if err != nil {
		return fmt.Errorf("pool %s: change DaemonSet %s: %w", p.Name, rollout.DaemonSetName(p.Name), err)
	}
	return nil
}
