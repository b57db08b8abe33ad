// Package operationwindow holds the rule OperationWindow: an OperationWindow says when which fields of the
// workloads of a namespace may change.
//
// Invariants:
//
//   - A window is open when the clock of its time zone says so. Weekly windows and
//     excluded dates are about what that clock shows: a time that it skips in spring
//     is not in any window, one that it shows twice in autumn is in the window both
//     times. Cron entries start as CronJobs do, each time the clock shows a time of
//     the schedule, and last for a duration of real time.
//   - Entries of one window and windows of one workload add up: a field may change
//     when one of them lets it. No selecting window, no restriction.
//   - The labels of the object before the change decide which windows select it, so
//     that one request cannot take off the label and change the rest.
//   - Only fields below spec count, each by its path. What the API server adds is on
//     both sides of a comparison and so never a change.
//   - A window that cannot be understood counts as closed.
//
// Schedule, diff and decision are pure; rule.go reads, status.go keeps the status.
package operationwindow
