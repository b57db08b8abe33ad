/*
Package poddeletion is the rules PodDeletion, PodDeletionRecord and DisruptionBudget: the deletion of
a protected pod is held to its PodDisruptionBudget, a deletion that its node may never see is recorded,
and the budgets of protected pods are kept.

# Objects

Deletions and evictions of pods with kubelet-guard.io/explicit-deletion=required, and changes of their
labels; updates and deletions of PodDisruptionBudgets in namespaces with protect-pods.

# Refused when

  - the pod's budget allows no disruption, as for an eviction, or several budgets select the pod;
  - a controller that cleans up behind nodes deletes a pod that was ready when its node was deleted,
    for an hour or as long as a mass failure lasts;
  - the PodDeletion record that a forced delete needs cannot be written;
  - a budget that selects protected pods is deleted, selects fewer of them or wants fewer healthy;
  - a person changes the labels of a protected pod so that no budget selects it any more.

# Let through when

  - the pod is terminating, finished, never scheduled, not started or a mirror pod;
  - no budget selects the pod;
  - the controller of its workload deletes it because of the workload's spec, or the namespace
    controller does;
  - the pod is not ready, and its node is lost or its budget lets such pods go;
  - a valid override is on the pod or the budget.

# Fails closed because

the label requests protection. It fails open for the DaemonSet controller, whose roll-outs must go on
during an outage; for evictions, which the API server holds to budgets; and for changes of labels.

# Implementation

The account is that of evictions: a disruption is taken by a compare-and-swap on the status of the
PodDisruptionBudget. Replicas of the webhook, evictions and the disruption controller therefore share
it, and a restart loses nothing. A delete is charged once, however many reviews it takes, as long as the
budget remembers the first charge; the disruption controller corrects an excess charge at its next sync.
A dry run is never charged.

The index finds the budgets that select a pod, at a price that does not depend on how many there are.
Their status in it may be old: only a compare-and-swap may rest on it. Every other result (refused,
charged before, not healthy) is confirmed on the live object first.

Only the collector removes records: expired ones, and those of the webhook whose delete never happened.
A writer may replace one that is about to expire.
*/
package poddeletion
