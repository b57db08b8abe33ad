// Package rollout is what the installer on a node and the kubectl plugin agree on:
// names, the request that a node is asked to fulfil, the report that it gives, and
// the DaemonSet that carries the one to the nodes of a pool. It does no I/O.
//
// Kubernetes is the engine: a roll-out is a change of the pod template of a DaemonSet.
// Three things are added to that:
//
//   - A DaemonSet that is created starts on all nodes at once. So it is created with
//     the target Observe, which changes nothing, and its template is changed later.
//   - A rolling update replaces pods that are not available at once, whatever
//     maxUnavailable says, and counts those on nodes that are not ready. So an installer
//     takes one of as many slots (Leases) as nodes may be changed at a time before it
//     touches its node, and keeps it when it fails: the slots are pace and brake.
//   - What a node reports is an annotation of the Node with the ID of the request, so
//     that an old report is never taken for a new one.
package rollout
