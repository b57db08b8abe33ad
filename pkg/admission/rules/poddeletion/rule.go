package poddeletion

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// DefaultDeletedNodeHold is how long pods that were ready are kept from the pod garbage
// collector after their node was deleted: long enough to notice, and to
// register the node again.
const DefaultDeletedNodeHold = time.Hour

// deletionByPodGC is the reason that the pod garbage collector writes into the condition
// DisruptionTarget of a pod before it deletes it. It writes the condition once, so its time
// is when it first wanted to (markFailedAndDeletePodWithCondition in upstream's
// pkg/controller/podgc).
const deletionByPodGC = "DeletionByPodGC"

// Rule holds the deletion of protected pods to their budgets, but not that of pods on lost
// nodes: they cannot be reached, and their workloads need new ones. Kubernetes deletes them
// past the budget for that reason.
//
// A node that was deleted need not be lost. Pods that were ready on it, as far as anybody
// knows, are kept for a while from the controllers that clean up behind a node, whether they
// have a budget or not.
type Rule struct {
	reservations *Reservations
	// health returns that of a node. With live, a cache is not enough to conclude that the node has
	// an object.
	health func(ctx context.Context, node string, live bool) (nodedeletion.Health, error)
	live   client.Reader
	// controllers are those that the cluster's administrator has named.
	controllers Controllers
	// hold is how long pods of deleted nodes are kept.
	hold  time.Duration
	clock clock.PassiveClock
}

// NewRule returns the rule PodDeletion. Pods of deleted nodes are kept from the pod garbage
// collector for the time of the hold; with 0 their budgets alone count. The controllers are
// let through besides those of Kubernetes itself.
func NewRule(reservations *Reservations, health func(ctx context.Context, node string, live bool) (nodedeletion.Health, error), live client.Reader, controllers Controllers, hold time.Duration, clock clock.PassiveClock) *Rule {
	return &Rule{reservations: reservations, health: health, live: live, controllers: controllers, hold: hold, clock: clock}
}

// Review judges the request. A disruption that it reserved stays reserved when
// something else refuses the request afterwards, for two minutes at most, as it does
// for an eviction whose delete fails.
func (r *Rule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	pod := &corev1.Pod{}
	if err := request.DecodeOldObject(pod); err != nil {
		return admission.Fail("%w", err)
	}
	why, err := r.passes(ctx, pod, request)
	switch {
	case err != nil:
		return admission.Fail("%w", err)
	case why == notProtected:
		return admission.Allow()
	case why != "":
		return admission.Allow().Annotate("budget", string(why))
	}
	ready, cleansUp := isReady(pod), cleansUpBehindNodes(request.UserInfo.Username, pod)
	var node nodedeletion.Health
	if !ready || cleansUp {
		if node, err = r.health(ctx, pod.Spec.NodeName, cleansUp); err != nil {
			return admission.Fail("find out whether node %s is lost: %w", pod.Spec.NodeName, err)
		}
	}
	heldUntil := r.heldUntil(pod)
	// A pod that is ready was fine when its node was deleted.
	if node.Lost && (!ready || node.Deleted && !r.clock.Now().Before(heldUntil)) {
		return admission.Allow().Annotate("budget", string(nodeLost))
	}
	outcome, err := r.reservations.Reserve(ctx, pod, request.IsDryRun())
	if err != nil {
		return admission.Fail("%w", err)
	}
	if node.MassFailure != "" && outcome.account == accountRefuse {
		outcome.why += fmt.Sprintf("; its node does not count as lost, since %s", node.MassFailure)
	}
	decision := admission.Allow()
	switch outcome.account {
	case accountUnselected:
		if cleansUp && node.Deleted && (node.MassFailure != "" || r.clock.Now().Before(heldUntil)) {
			return refuseForDeletedNode(request, pod, node, heldUntil)
		}
		return decision
	case accountRefuse:
		decision = refuse(request, outcome, r.hint(pod, request))
	case accountSeveral:
		decision = refuseSeveral(request, outcome)
	}
	return decision.Annotate("budget", outcome.String())
}

// passes is the function of the same name, with what needs another object.
func (r *Rule) passes(ctx context.Context, pod *corev1.Pod, request *admission.Request) (exemption, error) {
	if why := passes(pod, request); why != "" {
		return why, nil
	}
	if named := r.controllers.of(pod); named != "" && named == request.UserInfo.Username && !actsOnStatus(pod) {
		return byItsOwner, nil
	}
	if request.UserInfo.Username != daemonSetController || controllerOf(pod) != daemonSetController || admission.IsFinished(pod) {
		return "", nil
	}
	name := types.NamespacedName{Namespace: pod.Namespace, Name: metav1.GetControllerOf(pod).Name}
	// The whole object: the API server adds the annotation with the number of the template to that,
	// and leaves it out of bare metadata.
	set := &appsv1.DaemonSet{}
	err := r.live.Get(ctx, name, set)
	switch {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("read daemonset %s: %w", name, err)
	case isOutdated(pod, set):
		return outdatedPod, nil
	}
	return "", nil
}

// isOutdated reports whether the pod was made from another template than the one that its
// DaemonSet has now, so that a roll-out replaces it. Both keep the number of the template
// (IsPodUpdated in upstream's pkg/controller/daemon/util).
func isOutdated(pod *corev1.Pod, set *appsv1.DaemonSet) bool {
	generation := set.Annotations[appsv1.DeprecatedTemplateGeneration]
	return generation != "" && pod.Labels[templateGenerationLabel] != generation
}

// templateGenerationLabel is on the pods of a DaemonSet (DaemonSetTemplateGenerationKey in
// upstream's pkg/apis/apps).
const templateGenerationLabel = "pod-template-generation"

// cleansUpBehindNodes reports whether the requester deletes a pod that may run because
// its node is gone, as far as the requester knows: the pod garbage collector, and controllers
// that replace the pods that it has marked as failed.
func cleansUpBehindNodes(username string, pod *corev1.Pod) bool {
	if !admission.AnyRunning(pod) {
		return false
	}
	return username == podGarbageCollector || isItsController(username, pod) && admission.IsFinished(pod)
}

// heldUntil is the time from which the pod garbage collector may have a pod of a deleted
// node that was ready. The time starts with its condition, which comes before its first delete.
func (r *Rule) heldUntil(pod *corev1.Pod) time.Time {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.DisruptionTarget && condition.Reason == deletionByPodGC && !condition.LastTransitionTime.IsZero() {
			return condition.LastTransitionTime.Add(r.hold)
		}
	}
	return r.clock.Now().Add(r.hold)
}

// refuses reports whether the pod may not go.
func (a outcome) refuses() bool { return a.account == accountRefuse || a.account == accountSeveral }

// String is for the audit log.
func (a outcome) String() string {
	switch {
	case a.account == accountCharge && !a.at.IsZero():
		return fmt.Sprintf("%s: charged, %d left", a.budget.Name, a.left)
	case a.account == accountCharge:
		return a.budget.Name + ": not charged, dry run"
	}
	return a.budget.Name + ": " + string(a.account)
}

// hint returns for an operator's author why the operator is held, when its own account deletes
// pods that a kind of its own owns.
func (r *Rule) hint(pod *corev1.Pod, request *admission.Request) string {
	kind := ownerKind(pod)
	if kind.Empty() || workloadControllers[kind] != "" || r.controllers[kind] != "" || !slices.Contains(request.UserInfo.Groups, "system:serviceaccounts") {
		return ""
	}
	return fmt.Sprintf(". The pod belongs to a %s, whose controller the webhook does not know: its administrator can name it by --workload-controllers=%s=%s, or the controller uses evictions or the verb %s",
		kind, kind, request.UserInfo.Username, guardv1alpha1.OverrideVerb)
}

func refuse(request *admission.Request, refusal outcome, hint string) admission.Decision {
	name, namespace := refusal.budget.Name, refusal.budget.Namespace
	return admission.Refuse(admission.ReasonDisruptionBudget,
		fmt.Sprintf("%s is protected, and its deletion is held to poddisruptionbudget %s, which %s", request.Target(), name, refusal.why),
		fmt.Sprintf("Try again once ALLOWED DISRUPTIONS is above 0: kubectl get poddisruptionbudget %s -n %s --watch", name, namespace)+hint)
}

func refuseSeveral(request *admission.Request, refusal outcome) admission.Decision {
	return admission.Refuse(admission.ReasonDisruptionBudget,
		fmt.Sprintf("%s is protected, and several poddisruptionbudgets select it (%s), of which Kubernetes keeps only one up to date, so that it can be neither deleted nor evicted", request.Target(), refusal.budget.Name),
		fmt.Sprintf("Change them so that one selects the pod, or delete the others: kubectl get poddisruptionbudgets -n %s -o wide", refusal.budget.Namespace))
}

// refuseForDeletedNode refuses the clean-up behind a node that was deleted.
func refuseForDeletedNode(request *admission.Request, pod *corev1.Pod, node nodedeletion.Health, heldUntil time.Time) admission.Decision {
	message := fmt.Sprintf("%s is protected, and node %s was deleted, which may have been a mistake", request.Target(), pod.Spec.NodeName)
	if node.MassFailure != "" {
		message += ": " + node.MassFailure
	} else {
		message += fmt.Sprintf(": the pod was ready then and is kept until %s", heldUntil.UTC().Format(time.RFC3339))
	}
	return admission.Refuse(admission.ReasonNodeDeleted, message,
		fmt.Sprintf("If the machine runs, register the node again by a restart of its kubelet. If the machine is gone, delete the pod: kubectl delete pod %s -n %s --force", pod.Name, pod.Namespace))
}
