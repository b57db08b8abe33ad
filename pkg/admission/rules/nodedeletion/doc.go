// Package nodedeletion holds the rule NodeDeletion: a NodeDeletionPolicy limits how many Node objects of a
// pool are deleted in a period, and keeps a floor of ready nodes.
//
// Invariants:
//
//   - A deletion is written into the ledger, the policy's status, before it is
//     allowed. The write is a compare-and-swap on the live object, so that all
//     replicas of the webhook share one ledger and a restart forgets nothing.
//   - All policies that select the node have to allow it. They are charged in the
//     order of their names; when a later one refuses, the charges of the earlier ones
//     are taken back. A charge that cannot be taken back counts until its period is
//     over: the error is on the side of fewer deletions.
//   - A node, told by its UID, is charged once, however often its deletion is
//     reviewed. A dry run is decided the same way and charges nothing.
//   - A charge takes nothing out of the ledger that another replica may still count; the
//     status controller does, some minutes later. A deletion that was written with a time
//     ahead counts for one period from when that is noticed.
//   - Below its floor a pool lets no node go, ready or not, unless no more than two of its
//     nodes are not ready.
//   - The floor counts what a cache shows, less the nodes in the ledger: a node whose
//     deletion was allowed is gone, whether or not the cache knows.
//   - A policy that cannot be understood lets no node of its pool go. When the pool
//     is what cannot be understood, there is no pool.
//
// ledger.go is pure; rule.go reads and charges, status.go keeps the status. What holds
// without this process is in policies of the API server
// (manifests/control-plane/policies/nodes.yaml), and in an entry of the webhook
// configuration that outage.go keeps.
package nodedeletion
