/*
Package poddeletion holds the deletion of protected pods to their PodDisruptionBudgets,
and records those deletions that a node may never see.

Invariants:

 1. The budget is the one that eviction spends: a disruption is taken by a
    compare-and-swap on the status of the PodDisruptionBudget, as the eviction
    subresource does it. Replicas of the webhook, evictions and the disruption
    controller therefore share one account, and a restart loses nothing.
 2. The index says which budgets select a pod. What it shows of their status may be
    old: only a compare-and-swap may rest on it. Every other answer (refused,
    charged before, not healthy) is confirmed on the live object first.
 3. A delete is charged once, however many reviews it takes, as long as the budget
    remembers the first charge; a charge too many is taken back by the disruption
    controller with its next count. A dry run is never charged.
 4. The price of a review does not depend on how many budgets there are.
 5. A delete with grace period 0 by anyone but the pod's node passes only when its
    PodDeletion record exists.
 6. Only the collector removes records: expired ones, and those of the webhook whose
    delete never happened. A writer may replace one that is about to expire.
*/
package poddeletion
