package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// The requests of an installer to the API server are multiplied by the nodes of the fleet, for
// as long as it runs. docs/rollout.md has the budget.
const (
	// checkInterval is how often an installer that has finished checks its node.
	checkInterval = 20 * time.Second
	// retryInterval is how soon an installer tries again that has refused or failed, and
	// slowRetryInterval how seldom it does when the roll-out is not stopped by it.
	retryInterval     = 15 * time.Second
	slowRetryInterval = 2 * time.Minute
	// The next query of an installer that waits for a slot.
	soonest, latest = 3 * time.Second, 30 * time.Minute
	// queriesPerSlot and queriesOfPool are how many queries a second the installers of a pool have
	// together while they wait. A slot is free again after half a minute or so. A node that gets
	// one makes about 15 requests more: with 100 slots that is what bounds the pool's.
	queriesPerSlot, queriesOfPool = 0.025, 0.5
	// checkReport is how often an installer sees that its report is there, checkStopped how
	// often one does that has stopped the roll-out.
	checkReport, checkStopped = time.Hour, time.Minute
	// sameMessage is how long the message of a node that waits may stay behind.
	sameMessage = 10 * time.Minute
)

// jittered is a duration around d, from a half of it to one and a half.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// afterFailures is how long an installer waits that could not go on n times in a row.
func afterFailures(n int) time.Duration {
	return jittered(min(soonest<<min(n, 5), time.Minute))
}

// pace is how often a node is inspected.
type pace struct {
	last rollout.Report
	// same is how often in a row the report was as it is.
	same int
}

// next returns how long to wait after the report. turn is the last answer of the cluster.
func (p *pace) next(report rollout.Report, turn cluster.Turn) time.Duration {
	if p.last.Phase == report.Phase && p.last.Reason == report.Reason {
		p.same++
	} else {
		p.same = 0
	}
	p.last = report
	seldom := func(most time.Duration) time.Duration { return jittered(min(retryInterval<<min(p.same, 5), most)) }
	switch report.Phase {
	case rollout.Done, rollout.Observed:
		return checkInterval
	case rollout.Refused:
		if report.Target == rollout.Observe || !turn.Slot {
			return seldom(slowRetryInterval)
		}
		return retryInterval
	case rollout.RolledBack, rollout.Failed:
		return retryInterval
	case rollout.Waiting:
		if report.Reason != "" {
			return seldom(time.Minute)
		}
		return inLinePause(turn)
	}
	return soonest
}

// inLinePause is how long to wait for the next query for a slot. The more installers wait,
// the less often each of them queries: together they query as often as slots get free.
func inLinePause(turn cluster.Turn) time.Duration {
	queries := queriesOfPool + queriesPerSlot*float64(turn.Slots)
	wait := time.Duration(float64(turn.Unready) / queries * float64(time.Second))
	return jittered(min(max(wait, soonest), latest))
}

// written is a report that was written, or seen on the Node, and until when that counts.
type written struct {
	report rollout.Report
	until  time.Time
}

// recheck is how long it counts that a report is there.
func recheck(report rollout.Report) time.Duration {
	if marks(report) {
		return checkStopped
	}
	return jittered(checkReport)
}

// writeReport writes the report when it is another than the last one, and does what follows from
// it. While nothing changes it makes a request from time to time only.
func (i *Installer) writeReport(ctx context.Context, report rollout.Report) error {
	now := time.Now()
	if i.written != nil && now.Before(i.written.until) && unchanged(i.written.report, report, now) {
		return nil
	}
	if report.Reason == rollout.ReasonOtherPool {
		if err := i.Cluster.ReleaseSlot(ctx); err != nil {
			return err
		}
		i.written = &written{report: report, until: now.Add(recheck(report))}
		return nil
	}
	var mark *bool
	if report.Target != rollout.Observe && (report.Phase == rollout.Done || report.Phase.Stopped()) {
		value := marks(report)
		mark = &value
	}
	var node *corev1.Node
	if i.written == nil || !now.Before(i.written.until) {
		var err error
		if node, err = i.Cluster.Node(ctx); err != nil {
			return err
		}
		i.seen = node
	}
	report.Time = metav1.NewTime(now)
	there := false
	if node != nil {
		old, err := rollout.ReportOf(node)
		there = err == nil && old != nil && unchanged(*old, report, now) && (mark == nil || *mark == rollout.Marked(node))
		if there {
			report = *old
		}
	}
	if !there {
		if err := i.Cluster.Report(ctx, report, mark); err != nil {
			return err
		}
	}
	if err := i.afterReport(ctx, report); err != nil {
		i.written = nil // the Node is read again
		return err
	}
	i.written = &written{report: report, until: now.Add(recheck(report))}
	return nil
}

// unchanged reports whether a report has the content of an older one. When it was written does
// not count. While a node waits, its figures and its message come and go, and are written
// from time to time.
func unchanged(old, report rollout.Report, now time.Time) bool {
	report.Time = old.Time
	if report.Phase == rollout.Waiting && now.Sub(old.Time.Time) < sameMessage {
		report.Message = old.Message
		report.Protected, report.Held, report.HeldPods, report.Containers = old.Protected, old.Held, old.HeldPods, old.Containers
	}
	return report.Annotation() == old.Annotation()
}

// afterReport does what follows from a report that is there.
func (i *Installer) afterReport(ctx context.Context, report rollout.Report) error {
	switch {
	case report.Target == rollout.Observe, report.Phase == rollout.Done, report.Phase == rollout.Waiting && report.Reason != "":
		// Nothing is being changed here. A slot that is kept after a failure stands for
		// the request that failed.
		if err := i.Cluster.ReleaseSlot(ctx); err != nil {
			return err
		}
	case marks(report):
		if err := i.store().Mark(); err != nil {
			return err
		}
		return i.Cluster.StopPool(ctx, report.RequestID)
	case report.Phase == rollout.Refused && i.turn.Slot && i.finished == nil:
		return i.Cluster.StopPool(ctx, report.RequestID)
	}
	if report.Phase == rollout.Done && report.Target.Guarded() && i.seen != nil {
		return i.Cluster.Untaint(ctx, i.seen)
	}
	return nil
}

func (i *Installer) newReport() rollout.Report {
	return rollout.Report{RequestID: i.Request.ID(), Pool: i.Pool.Name, Target: i.Request.Target}
}

// reportOn is what a report has of an inspected node.
func (i *Installer) reportOn(v *view) rollout.Report {
	report := i.newReport()
	report.Architecture = architecture()
	report.Before, report.Now, report.Offered = v.now, v.now, v.offered
	report.Protected, report.Held, report.HeldPods = v.protected, len(v.held), atMost20(v.heldPods)
	report.Containers = len(v.running)
	return report
}

// reportOf is what a report has of a change.
func reportOf(entry *journal.Entry) rollout.Report {
	return rollout.Report{
		RequestID: entry.RequestID, Pool: entry.Pool, Target: entry.Target, Architecture: architecture(),
		Before: entry.Before, Offered: entry.Offered,
		Protected: entry.Protected, Held: len(entry.Held), HeldPods: entry.HeldPods,
		Containers: len(entry.Containers), Stopped: entry.Stopped,
		Started: metav1.NewTime(entry.Started),
	}
}

// marks reports whether a node with the report gets the label that says so.
func marks(report rollout.Report) bool {
	return report.Phase == rollout.RolledBack || report.Phase == rollout.Failed
}

// progress reports how far a change is. Failures are ignored.
func (i *Installer) progress(ctx context.Context, report rollout.Report, message string) {
	report.Phase, report.Message, report.Time = rollout.Installing, message, metav1.Now()
	klog.InfoS("Node", "phase", report.Phase, "message", message)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := i.Cluster.Report(ctx, report, nil); err != nil {
		klog.ErrorS(err, "Could not report the progress")
		i.written = nil
		return
	}
	i.written = &written{report: report, until: time.Now().Add(recheck(report))}
}

func (i *Installer) event(ctx context.Context, report rollout.Report) {
	kind, reason := corev1.EventTypeWarning, map[rollout.Phase]string{
		rollout.Done: rollout.EventDone, rollout.Refused: rollout.EventRefused,
		rollout.RolledBack: rollout.EventRolledBack, rollout.Failed: rollout.EventFailed,
	}[report.Phase]
	switch {
	case report.Target == rollout.Observe || reason == "":
		return
	case report.Phase == rollout.Done:
		kind = corev1.EventTypeNormal
	case report.Kept:
		reason = rollout.EventKept
	}
	if err := i.Cluster.Event(ctx, kind, reason, report.Message); err != nil {
		klog.ErrorS(err, "Could not write the event")
	}
}

func describe(k rollout.Kubelet) string {
	switch {
	case k.Version == "":
		return "version unknown"
	case k.Mode == "":
		return k.Version
	default:
		return fmt.Sprintf("%s, mode %s", k.Version, k.Mode)
	}
}
