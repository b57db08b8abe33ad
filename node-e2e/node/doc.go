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
//   - A spec that changes the node restores its normal state, also when it fails, so
//     that the order of specs does not matter.
//   - 'Killed' and 'kept' are statements about a process, identified by its pid
//     and its start time, never about what the API says of it.
//
// Where the specs are that are not named after their behaviour:
//
//   - incidents_test.go has the rows of the demonstration, incident_test.go what each of
//     them must show with either kubelet.
//   - apiserver_test.go: a node that is cut off, an API server that lags behind, none at all,
//     another node name. storage_test.go: an etcd that was replaced.
//   - runtime_test.go: another runtime, one that does not respond or responds wrongly.
//     runtimerecords_test.go: its changed or damaged records.
//   - state_test.go: a state directory that is damaged, full, read-only or hangs.
//   - declared_test.go: what the pod's author declared, such as probes and restarts.
//   - bench_test.go, counters_test.go and chaos_test.go run by make bench-node, load-node,
//     counters and chaos.
//
// What they are made of: suite_test.go (flags, start and end of the cluster, artifacts),
// pods_test.go (scene and subject: pods with their processes), kubelet_test.go (restarts),
// guard_test.go (metrics and holds), and the providers of nodes (provider*.go), which
// implement package testnode.
package node
