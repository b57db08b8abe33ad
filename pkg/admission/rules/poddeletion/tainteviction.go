package poddeletion

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
)

const (
	// deletionByTaintManager is the reason that taint eviction writes into the condition
	// DisruptionTarget of a pod before it deletes it (addConditionAndDeletePod in upstream's
	// pkg/controller/tainteviction).
	deletionByTaintManager = "DeletionByTaintManager"
	// taintEvictionTries covers its attempts: five, 10 ms apart. Then it forgets the pod.
	taintEvictionTries = 10 * time.Second
	// repeatInterval is how long a pod that may go waits at most.
	repeatInterval = 10 * time.Second
)

// TaintEviction repeats the deletions of protected pods by taints that were refused. The
// controller of the control plane tries for a moment and forgets the pod then, so that it
// would stay on a lost node when its budget allows its going later. What it has decided it
// leaves in the pod's status; that, and taints that are still there, are what counts.
// Each deletion is reviewed again like any other.
//
// It is a manager.Runnable of the leader.
type TaintEviction struct {
	nodes client.Reader
	pods  coreclient.PodsGetter
	clock clock.PassiveClock
}

// NewTaintEviction returns a TaintEviction that reads nodes from a cache, which keeps their
// taints of effect NoExecute.
func NewTaintEviction(nodes client.Reader, pods coreclient.PodsGetter, clock clock.PassiveClock) *TaintEviction {
	return &TaintEviction{nodes: nodes, pods: pods, clock: clock}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*TaintEviction) NeedLeaderElection() bool { return true }

// Start repeats until the context ends.
func (t *TaintEviction) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := t.repeat(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Deletions by taints that were refused could not be repeated; trying again", "after", repeatInterval)
		}
	}, repeatInterval)
	return nil
}

// repeat deletes what is due. What is refused again is no error.
func (t *TaintEviction) repeat(ctx context.Context) error {
	var nodes corev1.NodeList
	if err := t.nodes.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	log := klog.FromContext(ctx)
	for i := range nodes.Items {
		node := &nodes.Items[i]
		taints := evicting(node.Spec.Taints)
		if len(taints) == 0 {
			continue
		}
		pods, err := t.pods.Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
			LabelSelector: admission.ProtectedPods.String(),
			FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node.Name).String(),
		})
		if err != nil {
			return fmt.Errorf("list the protected pods of node %s: %w", node.Name, err)
		}
		for j := range pods.Items {
			pod := &pods.Items[j]
			if !t.due(log, pod, taints) {
				continue
			}
			// Under all rules, as any other deletion.
			err := t.pods.Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
			switch {
			case err == nil:
				log.Info("Repeated the deletion of a protected pod by a taint, which had been refused before", "pod", klog.KObj(pod), "node", node.Name)
			case apierrors.IsForbidden(err):
				log.V(2).Info("The deletion of a protected pod by a taint is refused", "pod", klog.KObj(pod), "node", node.Name, "reason", err.Error())
			case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err):
				return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
		}
	}
	return nil
}

// evicting returns the taints that delete pods.
func evicting(taints []corev1.Taint) []corev1.Taint {
	return slices.DeleteFunc(slices.Clone(taints), func(taint corev1.Taint) bool { return taint.Effect != corev1.TaintEffectNoExecute })
}

// due reports whether taint eviction has tried to delete the pod, and would try again for
// the taints that the node has.
func (t *TaintEviction) due(log klog.Logger, pod *corev1.Pod, taints []corev1.Taint) bool {
	if pod.DeletionTimestamp != nil || admission.IsFinished(pod) {
		return false
	}
	now := t.clock.Now()
	tried := slices.ContainsFunc(pod.Status.Conditions, func(condition corev1.PodCondition) bool {
		return condition.Type == corev1.DisruptionTarget && condition.Status == corev1.ConditionTrue && condition.Reason == deletionByTaintManager &&
			now.Sub(condition.LastTransitionTime.Time) >= taintEvictionTries
	})
	return tried && outstayed(log, pod, taints, now)
}

// outstayed reports whether the pod has been on the node for longer than it tolerates the
// taints.
func outstayed(log klog.Logger, pod *corev1.Pod, taints []corev1.Taint, now time.Time) bool {
	for i := range taints {
		taint := &taints[i]
		tolerated, stays := false, time.Duration(-1)
		for j := range pod.Spec.Tolerations {
			toleration := &pod.Spec.Tolerations[j]
			if !toleration.ToleratesTaint(log, taint, true) {
				continue
			}
			tolerated = true
			if seconds := toleration.TolerationSeconds; seconds != nil {
				if stay := time.Duration(max(0, *seconds)) * time.Second; stays < 0 || stay < stays {
					stays = stay
				}
			}
		}
		added := ptr.Deref(taint.TimeAdded, metav1.Time{}).Time
		if !tolerated || stays >= 0 && now.Sub(added) >= stays {
			return true
		}
	}
	return false
}
