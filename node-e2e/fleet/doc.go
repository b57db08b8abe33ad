// Package fleet holds the suite of many nodes: its specs are the package's test files;
// compiled with "go test -c" they form the fleet-e2e.test program.
//
// What every spec relies on:
//
//   - The cluster is one of package kind, which the caller brings up and takes down.
//     A run compares a worker of the pool stock with one of the pool guarded. A fault
//     meets both, so that one run of a spec shows how they differ.
//   - Several runs may be made on one cluster at the same time, each with a pair of its
//     own (-pair) and a part of the specs (by label). What they share is the control
//     plane node, which no spec damages.
//   - 'Killed' and 'kept' are statements about a container of a node's runtime,
//     identified by its id, never about what the API says of it.
//   - A spec has a namespace of its own, and restores what it changes in the cluster or on
//     a node, also when it fails.
//   - The companion control plane acts in namespaces that chose it and in no others,
//     so that specs need no order.
//
// lost_test.go and cutoff_test.go have nodes that are away for a short and for a long time,
// deleted_test.go those whose object is deleted, failover_test.go the workloads of lost
// nodes, colocation_test.go a wrong reservation that comes with a kubelet.
//
// What they are made of: suite_test.go (flags, kubectl, artifacts), nodes_test.go (faults of
// nodes), pods_test.go (scenes and pods, also one of each kind on both workers),
// guard_test.go (what guarded kubelets report), webhook_test.go (the webhook's installation).
package fleet
