/*
Package replicasprotection is the rule Replicas: the replicas of a workload with
kubelet-guard.io/replicas-protection=confirm change only to a number that the annotation
kubelet-guard.io/confirm-replicas confirms, and a ReplicaSet changes only with its Deployment.

# Objects

Updates of labelled custom kinds, whose replicas are where their definition has them; the /scale of
ReplicaSets, and of all built-in workloads in namespaces with kubelet-guard.io/scale-review=webhook;
updates of ReplicaSets in namespaces with protect-pods or operation-windows. Policies of the API server
decide the rest without the webhook.

# Refused when

  - the replicas of a labelled workload change to a number that is neither the confirmed one nor in the
    confirmed range;
  - the spec of a ReplicaSet of a Deployment is changed, also through /scale, in a namespace with
    protect-pods or operation-windows.

# Let through when

  - the replicas do not change, or neither the old nor the new object is labelled;
  - the deployment controller changes a ReplicaSet of a Deployment;
  - a valid override is on the workload.

# Fails closed because

the workload or its namespace is labelled. It fails open for /scale to a higher number, so that
autoscalers work during an outage, and for /scale of ReplicaSets in namespaces without protect-pods,
most of which have no label.

# Implementation

Rule judges updates of labelled objects, Scales the /scale of built-in workloads, ReplicaSets those of
Deployments. An object of /scale has no labels and annotations of its workload, so the workload is read
live for each, and the price of a request does not grow with the number of labelled workloads.
The /scale of a custom kind is refused by a policy of the API server that its users copy:
manifests/control-plane/components/scale-custom-kind.
*/
package replicasprotection
