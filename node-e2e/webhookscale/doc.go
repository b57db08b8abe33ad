// Package webhookscale measures one replica of guard-webhook in a large cluster: its memory
// with all protected pods, nodes and budgets in its caches, also while it lists them again,
// and what reviews cost it then. The replica is the program that is shipped, with the
// environment of its Deployment. The cluster is a server of this package, which serves
// lists and watches as an API server does and has no pods to run.
//
// See make bench-webhook.
package webhookscale
