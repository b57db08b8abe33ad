/*
Package deletionprotection is the rules CascadingDeletion and ResourceDeletion: objects that are
labelled kubelet-guard.io/deletion-protection are not deleted, with always at all, with cascading while
something depends on them.

# Objects

Deletions of labelled objects of any kind and of CustomResourceDefinitions, and evictions of labelled
pods.

# Refused when

  - the label is always;
  - it is cascading on a namespace with unfinished pods or bound PersistentVolumeClaims;
  - on a CustomResourceDefinition with custom resources, or with ones that the webhook may not list;
  - on a PersistentVolumeClaim that an unfinished pod mounts;
  - on a Service with a ready endpoint;
  - on a workload, also a custom kind with a scale subresource, with replicas in its spec or status or
    with a status older than its spec; on a DaemonSet with pods, a Job or CronJob with active ones;
  - on any other kind, since its dependents are unknown;
  - a CustomResourceDefinition without the label has labelled custom resources, which the API server
    deletes with it, without admission.

# Let through when

  - the object is terminating;
  - it is an Endpoints, EndpointSlice or ControllerRevision, to which controllers copy labels;
  - the label is cascading on a pod or node: nothing depends on a pod, and nodes have a rule of their
    own;
  - a valid override is on the object.

# Fails closed because

the label requests protection. It fails open for CustomResourceDefinitions without the label and for
evictions, whose pod may have none.

# Implementation

Dependents are read from the API server, never from a cache: such deletions are rare, and a stale
result would be the incident that the label prevents. decide.go has no client, clock or log.
*/
package deletionprotection
