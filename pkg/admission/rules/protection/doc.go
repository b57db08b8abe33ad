/*
Package protection is the rule Protection: the label of a protected pod, and the grant of its
namespace, are not removed while pods need them.

# Objects

Updates of pods with kubelet-guard.io/explicit-deletion=required; updates and deletions of namespaces
with kubelet-guard.io/protect-pods=allowed or =default. A subresource that can change labels counts as
the object.

# Refused when

  - the label is removed from a pod that is bound to a node, or whose namespace has
    protect-pods=default;
  - the grant is removed from a namespace with unfinished protected pods, or such a namespace is
    deleted.

# Let through when

  - the pod is terminating, finished (by its phase, and no container is reported as running) or a
    mirror pod;
  - the namespace is terminating, or has no unfinished protected pod;
  - a valid override is on the pod or the namespace.

# Fails closed because

the label and the grant request protection. Without an override, a policy of the API server keeps the
label on pods, and needs no webhook.

# Implementation

A namespace's pods are read live; its labels come from a cache.
*/
package protection
