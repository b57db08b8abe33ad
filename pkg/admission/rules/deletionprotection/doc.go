/*
Package deletionprotection is the rules CascadingDeletion and ResourceDeletion: an object that is
labelled kubelet-guard.io/deletion-protection=always is not deleted, and one that is labelled
=cascading is not deleted while something depends on it.

# Objects

Deletions of labelled objects of any kind and of CustomResourceDefinitions, and evictions of
labelled pods.

# Refused when

  - the object is labelled always;
  - a namespace that is labelled cascading has pods that have not finished, or bound
    PersistentVolumeClaims;
  - a CustomResourceDefinition that is labelled cascading has custom resources, or the webhook may
    not list them;
  - a CustomResourceDefinition without the label has labelled custom resources, which the API server
    deletes with it, without admission;
  - a PersistentVolumeClaim that is labelled cascading is mounted by a pod that has not finished;
  - a Service that is labelled cascading has a ready endpoint;
  - a workload that is labelled cascading, also a custom kind with a scale subresource, has replicas
    in its spec or status, or its status is older than its spec; a DaemonSet has pods on any node; a
    Job or CronJob has active pods or jobs;
  - an object of any other kind is labelled cascading, since its dependents are unknown.

# Let through when

  - the object is terminating already;
  - it is an Endpoints, EndpointSlice or ControllerRevision, to which controllers copy labels;
  - it is a pod or node that is labelled cascading: nothing depends on a pod, and nodes have a rule
    of their own;
  - a valid override is on the object.

# Fails closed because

the label requests protection. It fails open for a CustomResourceDefinition without the label, and
for evictions, whose pod may have no label.

# Implementation

Dependents are read from the API server when the object is deleted, never from a cache: such
deletions are rare, and a stale result would be the incident that the label prevents. The functions
of decide.go decide; they have no client, clock or log.
*/
package deletionprotection
