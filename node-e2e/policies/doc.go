// Package policies has no code: its tests evaluate the policies and the match conditions of
// the webhook in manifests/control-plane with the API server's own packages, without a
// cluster. What selects objects and namespaces is evaluated, too.
package policies
