/*
Package operationwindow is the rule OperationWindow: an OperationWindow defines when which fields of
the workloads of a namespace may change.

# Objects

Updates of Deployments, StatefulSets, DaemonSets and ReplicaSets, also through /scale, in namespaces
with kubelet-guard.io/operation-windows=enforced.

# Refused when

  - a window selects the workload, and no such window allows a changed field of its spec at this time.

# Let through when

  - no window selects the workload, or no field of its spec changes;
  - the deployment controller changes a ReplicaSet of a Deployment;
  - a valid override is on the workload.

# Fails closed because

the label on the namespace accepts that an outage blocks changes of its workloads.

# Implementation

A window is open when the clock of its time zone is in it. Weekly windows and excluded dates follow
that clock: a time that it skips in spring is in no window, one that it shows twice in autumn is in the
window both times. Cron entries start as CronJobs do, each time the clock shows a time of the schedule,
and last for a duration of real time. A window that is not valid counts as closed.

The labels before the change decide which windows select the workload, so that one request cannot
remove a label and change the rest. Each field below spec counts by its path. What the API server adds
is on both sides of the comparison and so never a change.

Schedule, diff and decision are pure; rule.go reads, status.go keeps the status.
*/
package operationwindow
