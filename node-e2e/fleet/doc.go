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
//   - A spec has a namespace of its own, and brings what it changes in the cluster or on
//     a node back, also when it fails.
//   - The companion control plane acts in namespaces that chose it and in no others,
//     so that specs need no order.
package fleet
