/*
Package protection is the rule Protection: the label of a protected pod, and the grant of its
namespace, are not removed while pods need them.

# Objects

Updates of pods that are labelled kubelet-guard.io/explicit-deletion=required, and updates and
deletions of namespaces that are labelled kubelet-guard.io/protect-pods=allowed or =default. A
subresource that can change labels counts as the object.

# Refused when

  - the label is removed from a pod that is bound to a node and has not finished;
  - the label is removed from a pod that has no node yet, in a namespace with protect-pods=default;
  - the grant is removed from a namespace with protected pods that have not finished;
  - such a namespace is deleted.

# Let through when

  - the pod is terminating, has finished (its phase says so, and no container is reported as running)
    or is a mirror pod;
  - the namespace is terminating, or has no protected pod that has not finished;
  - a valid override is on the pod or the namespace.

# Fails closed because

the label and the grant request protection. Removing the label from a pod without an override is
refused by a policy of the API server, which needs no webhook.

# Implementation

A namespace's pods are read live; its labels come from a cache.
*/
package protection
