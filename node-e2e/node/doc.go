// Package node describes the nodes that the node suite runs on and the incidents
// in its report. The specs themselves are this package's test files; compiled
// with "go test -c" they form the node-e2e.test program, which guard-e2e runs
// once per kubelet.
//
// What every spec relies on:
//
//   - One run of the suite drives one cluster with one node and one kubelet,
//     stock or guarded. Comparing the two is the business of guard-e2e, which reads
//     both reports.
//   - A spec that changes the node brings it back to its normal state, also when
//     it fails, so that the order of specs does not matter.
//   - 'Killed' and 'kept' are statements about a process, identified by its pid
//     and its start time, never about what the API says of it.
package node
