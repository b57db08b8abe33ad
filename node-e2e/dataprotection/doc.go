// Package dataprotection is the drill of guard-etcd: each accident on a real etcd with TLS and
// authentication, an API server with encryption at rest and a controller manager, on loopback,
// and the figures that its undoing reached. make drill runs it.
package dataprotection
