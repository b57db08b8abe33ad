/*
Package nodedeletion is the rule NodeDeletion: a NodeDeletionPolicy limits how many Node objects of a
pool are deleted in a period, and keeps a floor of ready nodes.

# Objects

Deletions of nodes.

# Refused when

  - a policy that selects the node has maxDeletions in its period already;
  - the node is ready, and without it fewer than minReady would be;
  - fewer than minReady are ready, and more than two of the pool are not;
  - a policy that selects the node is not valid.

# Let through when

  - the node is terminating, or no policy selects it;
  - all policies that select it allow the deletion, or have it in their ledgers;
  - a valid override is on the node.

# Fails open because

the node may have no label. It fails closed for nodes with kubelet-guard.io/deletion-protection, and
for pools whose policy has whenUnavailable=Hold, the default.

# Implementation

A deletion is written into the ledger, the policy's status, before it is allowed, by a compare-and-swap
on the live object: all replicas of the webhook share one ledger, and a restart forgets nothing.
Policies are charged in the order of their names; when a later one refuses, the earlier charges are
refunded. One that cannot be refunded counts until its period is over: the error is on the side of
fewer deletions.

A node is charged once by its UID, however often its deletion is reviewed; a dry run never is. Only the
status controller removes what counts no longer, some minutes later, since another replica may still
count it. A deletion that was written with a time ahead counts for one period from when that is noticed.

The floor counts what a cache shows, less the nodes in the ledger. A policy that is not valid lets no
node of its pool go; when its selector is not valid, there is no pool.

limit.go is pure; rule.go reads and charges, status.go keeps the status. What holds without this
process is in policies of the API server (manifests/control-plane/policies/nodes.yaml), and in an entry
of the webhook configuration that outage.go keeps.
*/
package nodedeletion
