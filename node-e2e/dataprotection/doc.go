// Package dataprotection is the drill of guard-etcd: each accident on a real etcd with TLS and
// authentication, an API server with encryption at rest and a controller manager, on loopback,
// and the figures that its undoing reached. make drill runs it.
//
// make compare-recovery recovers from some of the accidents in other ways as well, on a cluster
// with a guarded node, and compares.
package dataprotection
