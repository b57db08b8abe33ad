/*
Package nodedeletion is the rule NodeDeletion: a NodeDeletionPolicy limits how many Node objects of a
pool are deleted in a period, and keeps a floor of ready nodes.

# Objects

Deletions of nodes.

# Refused when

  - a policy that selects the node has as many deletions in its period as maxDeletions allows;
  - the node is ready, and fewer nodes than minReady would be ready without it;
  - the pool has fewer ready nodes than minReady, and more than two of its nodes are not ready;
  - a policy that selects the node is not valid.

# Let through when

  - the node is terminating already, or no policy selects it;
  - all policies that select it allow the deletion;
  - the deletion is in their ledgers already;
  - a valid override is on the node.

# Fails open because

the node may have no label. It fails closed for nodes that are labelled
kubelet-guard.io/deletion-protection, and for those of pools whose policy has whenUnavailable=Hold,
which is the default.

# Implementation

A deletion is written into the ledger, the policy's status, before it is allowed. The write is a
compare-and-swap on the live object, so that all replicas of the webhook share one ledger and a
restart forgets nothing. All policies that select the node have to allow it. They are charged in the
order of their names; when a later one refuses, the earlier charges are refunded. A charge that
cannot be refunded counts until its period is over: the error is on the side of fewer deletions.

A node, identified by its UID, is charged once, however often its deletion is reviewed. A dry run is
decided the same way and charges nothing. A charge removes nothing from the ledger that another
replica may still count; the status controller does, some minutes later. A deletion that was written
with a time ahead counts for one period from when that is noticed.

The floor counts what a cache shows, less the nodes in the ledger: a node whose deletion was allowed
is gone, whether or not the cache shows it. A policy that is not valid lets no node of its pool go.
When its selector is not valid, there is no pool.

ledger.go is pure; rule.go reads and charges, status.go keeps the status. What holds without this
process is in policies of the API server (manifests/control-plane/policies/nodes.yaml), and in an
entry of the webhook configuration that outage.go keeps.
*/
package nodedeletion
