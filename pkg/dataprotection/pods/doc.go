// Package pods restores pods from guarded nodes: after a whole restore of an old snapshot, or
// with an empty etcd, the nodes alone have the objects of the pods that they hold.
//
// The rules, beyond those of package restore:
//
//   - A pod whose deletion was requested stays gone: its node has evidence, or there is a record.
//   - No pod is written with an owner that is not there: the garbage collector would delete it, and
//     for a guarded node that is an explicit deletion. Such owners are noted in an annotation, and
//     controllers adopt the pod by their selectors.
//   - No pod is written that another controller would delete: one too many for its workload, or one
//     whose node has no object (pod garbage collection) or a taint that it does not tolerate.
//   - A claim that is gone comes back with its volume, both with their UIDs, so that the binding is
//     kept; otherwise a workload would get an empty volume in its place.
//
// What is left out is still held by its node, and can be restored later.
package pods
