/*
Package deletionprotection holds two rules about objects that are labelled
kubelet-guard.io/deletion-protection.

Cascading: "always" refuses every deletion; "cascading" refuses it while something
depends on the object. Resources: a workload that is labelled "cascading" may go only
once it has no replicas, in its spec and in its status.

Invariants:

 1. What is being deleted already is never refused: another DELETE of it changes
    nothing, and the controllers that finish a deletion repeat theirs.
 2. What depends on an object is asked of the API server when the object is deleted,
    never of a cache: such deletions are rare, and a stale answer would be the
    incident that the label is there for.
 3. What controllers copy labels to is never refused: a Service's EndpointSlices and
    Endpoints, and the ControllerRevisions of workloads.
 4. A kind of which this package does not know what depends on it is treated as
    "always": the label is a wish for protection.

The functions of decide.go decide; they have no client, clock or log.
*/
package deletionprotection
