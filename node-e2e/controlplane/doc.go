// Package controlplane holds the suite of the companion control plane: its specs
// are the package's test files; compiled with "go test -c" they form the
// controlplane-e2e.test program.
//
// What every spec relies on:
//
//   - The cluster is the embedded one, with the real API server, controller manager
//     and a guarded kubelet, and the control plane is installed in it by kubectl
//     apply -k of the real manifests: two replicas of the webhook, as pods.
//   - Requests are made by users: an ordinary user with every right but override,
//     a user with that right as well, a node, a controller. The administrator
//     prepares and cleans up.
//   - A spec has a namespace of its own and restores what it changes in the cluster
//     (the mode, the number of webhook replicas), also when it fails.
//
// Files *_policy_test.go have what the API server decides by itself (label policies), also
// while the webhook is away; files named after a rule have the webhook's decisions;
// mechanisms_test.go has requests that both judge. outage_test.go stops the webhook,
// selfprotection_test.go deletes the guard's own parts, install_test.go switches overlays,
// manifests_test.go reads the manifests without a cluster.
//
// What they are made of: suite_test.go (flags, cluster, audit log, artifacts),
// install_test.go (the webhook's installation), users_test.go (who makes a request, and
// kubectl), objects_test.go (namespaces, pods, workloads, nodes without a kubelet).
package controlplane
