package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// Systemd is the systemd of the node.
type Systemd interface {
	journal.Systemd
	Unit(ctx context.Context, name string) (systemd.Unit, error)
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
}

// Cluster is what the installer reads from the API server and writes to it.
type Cluster interface {
	Node(ctx context.Context) (*corev1.Node, error)
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	Heartbeat(ctx context.Context) (time.Time, error)
	ServerVersion(ctx context.Context) (string, error)
	Selects(ctx context.Context, pool string, node *corev1.Node) (bool, error)
	TakeSlot(ctx context.Context, node *corev1.Node, requestID string, refuses bool) (cluster.Turn, error)
	StopPool(ctx context.Context, requestID string) error
	ReleaseSlot(ctx context.Context) error
	Untaint(ctx context.Context, node *corev1.Node) error
	Report(ctx context.Context, report rollout.Report, mark *bool) error
	Event(ctx context.Context, kind, reason, message string) error
}

// Installer brings one node to what one request names.
type Installer struct {
	Root    host.Root
	Systemd Systemd
	Cluster Cluster
	Request rollout.Request
	Pool    rollout.Pool
	// Owner names this process for another installer of the node.
	Owner string
	// Program and Kubelet are the paths of the two programs of the image, here.
	Program, Kubelet string
	// Ask asks the kubelet of the node. The pin is that of kubelet.Client, and is
	// returned.
	Ask func(ctx context.Context, address, pin string) (kubelet.Answer, string, error)
	// Protected asks the kubelet which pods its guard protects. It needs less of the
	// kubelet than Ask: one that is not healthy may still answer.
	Protected func(ctx context.Context, address, pin string) (*guard.PodList, error)
	// Pods asks the kubelet for its pods.
	Pods func(ctx context.Context, address, pin string) (kubelet.Pods, error)
	// Config asks the kubelet for the configuration that it runs with.
	Config func(ctx context.Context, address, pin string) (kubelet.Config, error)
	// TokenFile has the token for the kubelet, here.
	TokenFile string
	// Running asks the container runtime at the socket of the node.
	Running func(ctx context.Context, socket string) ([]cri.Container, error)
	// Version runs a program with --version. The root is that of the node, or empty for
	// a program of the image.
	Version func(ctx context.Context, root host.Root, program string) (string, error)
	// SetReady reports whether the pod is ready.
	SetReady func(bool) error
	// Poll is how often a node is inspected while it is being verified: 1 second.
	Poll time.Duration
	// Recovery is how long the old kubelet may take to be healthy again: 45 seconds.
	Recovery time.Duration

	// finished is the report of a node that has what was requested, and finishedDropIn
	// the drop-in that it has. From then on this process changes the node no more.
	finished       *rollout.Report
	finishedDropIn *string
	// waitedForOldKubelet: the old kubelet was waited for after a change was rolled back.
	waitedForOldKubelet bool
	// asMode is whether a finished node has its mode. asked is when the kubelet was asked,
	// askedOf the process that has answered.
	asMode  answer.Answer
	asked   time.Time
	askedOf int
	// owned is the lock of the node. claimed: the node belongs to the pool.
	owned   *host.Lock
	claimed bool
	// unfinished is how often in a row a change could not be finished, stuck the
	// report of that, and nextTry when it is tried again.
	unfinished int
	stuck      rollout.Report
	nextTry    time.Time
	// observed is the report of a node that was only inspected, until observedUntil.
	observed      *rollout.Report
	observedUntil time.Time
	// inLine is the node while it waits for nothing but a slot, and turn the last answer.
	inLine *inLine
	turn   cluster.Turn
	// written is the report that the Node has, and seen the Node as it was last read for more
	// than a glance.
	written *written
	seen    *corev1.Node
}

const (
	// timerMargin is how much later than the installer the timer rolls a change back.
	timerMargin = 15 * time.Second
	// quickTries is how often a change that cannot be finished is tried again
	// before the node is reported as failed. From then on it is tried every slowTry.
	quickTries = 5
	slowTry    = time.Minute
	// askAgain is how long a kubelet that does not answer is left alone that was started
	// on a finished node. One that has answered is not asked again: a guard keeps its mode
	// for its life, and each answer costs the API server some questions of the kubelet's.
	askAgain = time.Minute
)

// store returns the journal of the node.
func (i *Installer) store() journal.Store { return journal.Store{Root: i.Root} }

// Run works until the context ends. A change that has started is finished
// first. Log errors and retry: the kubelet would start an
// installer that exits again and again.
func (i *Installer) Run(ctx context.Context) error {
	defer i.disown()
	var last rollout.Report
	var pace pace
	failures := 0
	for {
		report, err := i.Step(ctx)
		if err != nil {
			klog.ErrorS(err, "Could not go on, will try again")
			failures++
			report = i.newReport()
			report.Phase, report.Message = rollout.Waiting, fmt.Sprintf("cannot go on, and tries again: %v", err)
		} else {
			failures = 0
		}
		// What fails may have restarted the kubelet, so it is not tried in a hurry.
		wait := afterFailures(failures)
		// Transient failures are not reported.
		if failures == 0 || failures > 2 {
			// An installer that is terminated reports the outcome of its change, too.
			reportCtx := context.WithoutCancel(ctx)
			if last.Phase != report.Phase || last.Reason != report.Reason {
				klog.InfoS("Node", "phase", report.Phase, "reason", report.Reason, "message", report.Message)
				i.event(reportCtx, report)
			}
			if err := i.writeReport(reportCtx, report); err != nil {
				klog.ErrorS(err, "Could not report, will try again")
			} else {
				last = report
				if failures == 0 {
					wait = pace.next(report, i.turn)
				}
			}
		}
		if err := i.SetReady(err == nil && ready(report)); err != nil {
			klog.ErrorS(err, "Could not write whether the node is ready")
		}
		select {
		case <-ctx.Done():
			i.leavePool(context.WithoutCancel(ctx))
			return nil
		case <-time.After(wait):
		}
	}
}

// leavePool releases the slot of a node that has left its pool, unless a change is under way.
func (i *Installer) leavePool(ctx context.Context) {
	entry, err := i.store().Read()
	if err != nil || entry != nil && entry.State == journal.Switching {
		return
	}
	node, err := i.Cluster.Node(ctx)
	if apierrors.IsNotFound(err) || err == nil && i.Pool.Matches(node) {
		return // the slot of a Node that is gone goes with it
	}
	if err == nil {
		err = i.Cluster.ReleaseSlot(ctx)
	}
	if err != nil {
		klog.ErrorS(err, "Could not release the slot")
	}
}

// ready reports which reports let a roll-out go on. An installer that observes changes
// nothing: what it refuses is for who reads the report.
func ready(report rollout.Report) bool {
	return report.Target == rollout.Observe || report.Phase == rollout.Done
}

// Step does what can be done now and returns how the node is. The error is about what
// may be different the next time, such as an API server that does not answer.
func (i *Installer) Step(ctx context.Context) (rollout.Report, error) {
	other, err := i.own()
	if err != nil {
		return rollout.Report{}, err
	}
	switch {
	case other == "":
	case i.ofThisPool(other):
		report := i.newReport()
		report.Phase = rollout.Waiting
		report.Message = fmt.Sprintf("Another installer runs on this node: %s. This one starts when that one has ended", other)
		return report, nil
	default:
		return i.refuseOtherPool("another installer runs on this node: " + other), nil
	}
	if i.finished != nil {
		return i.watch(ctx), nil
	}
	if i.observed != nil && time.Now().Before(i.observedUntil) {
		return *i.observed, nil
	}
	entry, err := i.store().Read()
	if err != nil {
		return i.refuse(rollout.Report{}, refusal{rollout.ReasonPreparation, err.Error()}), nil
	}
	if entry != nil && entry.State == journal.Switching {
		// What was started is finished, whatever is requested now.
		if time.Now().Before(i.nextTry) {
			return i.stuck, nil
		}
		klog.InfoS("An installer was interrupted in the middle of a change", "request", entry.RequestID)
		ended, err := i.finish(context.WithoutCancel(ctx), entry)
		if err != nil {
			return i.notFinished(entry, err)
		}
		entry, i.unfinished = ended, 0
	}
	if i.Root.Exists(path.Join(units, recoverUnit)) {
		// Of an installer that was interrupted before or after a change.
		if err := i.endUnits(ctx); err != nil {
			return rollout.Report{}, err
		}
	}
	if pool, err := i.otherPool(ctx, entry); err != nil || pool != "" {
		i.disown()
		if err != nil {
			return rollout.Report{}, err
		}
		return i.refuseOtherPool(fmt.Sprintf("the node belongs to pool %s, which selects it as well", pool)), nil
	}
	if entry != nil && entry.State == journal.RolledBack && entry.RequestID == i.Request.ID() {
		retry, err := i.retryRequested(ctx, entry)
		if err != nil {
			return rollout.Report{}, err
		}
		if !retry {
			if !entry.Marked {
				// The node rolled it back by itself, maybe a moment ago.
				i.waitForOldKubelet(context.WithoutCancel(ctx), entry)
			}
			return i.rolledBackReport(ctx, entry), nil
		}
		i.waitedForOldKubelet = false
		if err := i.store().Clear(); err != nil {
			return rollout.Report{}, err
		}
		entry = nil
	}
	if entry.Kept() && entry.RequestID == i.Request.ID() {
		retry, err := i.retryRequested(ctx, entry)
		if err != nil {
			return rollout.Report{}, err
		}
		unmodified := i.unmodified(entry)
		switch {
		case !retry:
			return i.keptReport(ctx, entry), nil
		case unmodified.Err() != nil:
			return rollout.Report{}, unmodified.Err()
		case unmodified.IsNo():
			// Somebody has put another kubelet there by hand.
			if err := i.store().Clear(); err != nil {
				return rollout.Report{}, err
			}
			entry = nil
		default:
			if entry, err = i.reevaluate(context.WithoutCancel(ctx), entry); err != nil {
				return rollout.Report{}, err
			}
			return i.outcome(ctx, entry)
		}
	}
	if entry != nil && entry.State == journal.Confirmed && entry.RequestID == i.Request.ID() {
		converged := i.converged(ctx, entry)
		if converged.IsYes() {
			converged = i.inMode(ctx, entry)
		}
		if err := converged.Err(); err != nil {
			return rollout.Report{}, err
		}
		if converged.IsYes() {
			return i.doneReport(ctx, entry)
		}
	}
	return i.work(ctx)
}

// notFinished reports a change that could not be finished, when that has
// failed a few times.
func (i *Installer) notFinished(entry *journal.Entry, err error) (rollout.Report, error) {
	if i.unfinished++; i.unfinished < quickTries {
		return rollout.Report{}, err
	}
	i.nextTry = time.Now().Add(slowTry)
	report := reportOf(entry)
	report.Architecture = architecture()
	report.Phase, report.Reason = rollout.Failed, entry.Reason
	if report.Reason == "" {
		report.Reason = rollout.ReasonInterrupted
	}
	report.Message = fmt.Sprintf("The change of the kubelet is neither confirmed nor rolled back, after %d tries: %v. Fix that on the node; the installer tries again every minute, and so does %s (journalctl -u %s)", i.unfinished, err, rollbackUnit, rollbackUnit)
	i.stuck = report
	return report, nil
}

// retryRequested reports whether somebody has requested to try the failed attempt again. A Node
// that lost its label, or was registered again, says nothing.
func (i *Installer) retryRequested(ctx context.Context, entry *journal.Entry) (bool, error) {
	if !entry.Marked {
		return false, nil
	}
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return false, err
	}
	return rollout.Resumed(node, entry.ID), nil
}

// unmodified answers whether the drop-in is the one of the entry.
func (i *Installer) unmodified(entry *journal.Entry) answer.Answer {
	current, err := i.dropIn()
	if err != nil {
		return answer.Unknown(err)
	}
	return answer.Of(same(current, entry.Wanted))
}

// converged answers whether the node runs what the entry says, with its configuration.
func (i *Installer) converged(ctx context.Context, entry *journal.Entry) answer.Answer {
	files := i.unmodified(entry).And(i.configurationIntact(entry.Wanted))
	process, a := i.process(ctx)
	if !a.IsYes() {
		return files.And(a)
	}
	return files.And(answer.Of(process.SHA256 == entry.Kubelet.SHA256))
}

// process is the one of the kubelet. The answer is whether it runs.
func (i *Installer) process(ctx context.Context) (host.Process, answer.Answer) {
	unit, err := i.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return host.Process{}, answer.Unknown(err)
	}
	if !unit.Running() {
		return host.Process{}, answer.No()
	}
	process, err := i.Root.Process(unit.MainPID)
	if err != nil {
		return host.Process{}, answer.Unknown(err)
	}
	return process, answer.Yes()
}

// configurationIntact answers whether the guard's configuration that the drop-in names is
// the one that was written: its name is its checksum.
func (i *Installer) configurationIntact(dropIn *string) answer.Answer {
	name := configurationOf(dropIn)
	if name == "" {
		return answer.Yes()
	}
	data, err := i.Root.ReadText(name)
	switch {
	case err != nil:
		return answer.Unknown(err)
	case data == nil:
		return answer.No()
	}
	sum := sha256.Sum256([]byte(*data))
	return answer.Of(path.Base(name) == hex.EncodeToString(sum[:])+".yaml")
}

// inMode answers whether the guard reports that it is in the mode of the entry. The file
// that the kubelet has read may have been another one.
func (i *Installer) inMode(ctx context.Context, entry *journal.Entry) answer.Answer {
	if !entry.Target.Guarded() {
		return answer.Yes()
	}
	process, a := i.process(ctx)
	if !a.IsYes() {
		return a
	}
	address := entry.Address
	if boot, err := i.Root.Boot(); err != nil || boot != entry.Boot {
		node, err := i.Cluster.Node(ctx)
		if err != nil {
			return answer.Unknown(err)
		}
		address = kubeletAddress(node)
	}
	said, _, err := i.askNow(ctx, address, entry, process)
	if err != nil {
		return answer.Unknown(err)
	}
	return answer.Of(said.Guarded && said.Mode == entry.Kubelet.Mode)
}

// setFinished notes that the node has what was requested.
func (i *Installer) setFinished(report rollout.Report) rollout.Report {
	// What cannot be read now was read a moment ago.
	i.finishedDropIn, _ = i.dropIn()
	i.finished = &report
	return report
}

// watch checks a node that was done. When somebody has changed it by
// hand the installer says so and leaves it: a person who has fixed the node in the night
// shall not have to fight with it. It queries nothing but the node, so that an API server
// that is away makes no pod unready; each kubelet that is started is asked once for the
// mode of its guard. What is unknown is as it was.
func (i *Installer) watch(ctx context.Context) rollout.Report {
	report := *i.finished
	changed := func(reason rollout.Reason, what string) rollout.Report {
		return i.refuse(report, refusal{reason, fmt.Sprintf(
			"the node was done, and %s since. To restore it, delete this pod (kubectl delete pod -n %s --field-selector spec.nodeName=NODE); to keep the change, take the node out of the pool", what, rollout.Namespace)})
	}
	asIs := answer.Yes()
	if current, err := i.dropIn(); err == nil {
		asIs = answer.Of(same(current, i.finishedDropIn))
	}
	process, running := i.process(ctx)
	if running.IsYes() && i.Request.Target.Guarded() {
		asIs = asIs.And(answer.Of(process.SHA256 == i.finished.Now.SHA256))
	}
	if asIs.IsNo() {
		report.Now = rollout.Kubelet{SHA256: process.SHA256}
		return changed(rollout.ReasonOtherKubelet, fmt.Sprintf("somebody has changed %s or its drop-ins", rollout.KubeletUnit))
	}
	if i.configurationIntact(i.finishedDropIn).IsNo() {
		return changed(rollout.ReasonMode, fmt.Sprintf("somebody has changed or removed the guard's configuration %s", configurationOf(i.finishedDropIn)))
	}
	if i.Request.Target.Guarded() && running.IsYes() && process.PID != i.askedOf && time.Since(i.asked) >= askAgain {
		i.asked = time.Now()
		entry, err := i.store().Read()
		if err != nil || entry == nil || entry.State != journal.Confirmed {
			entry = &journal.Entry{Target: i.Request.Target, Kubelet: rollout.Kubelet{Mode: i.Request.Target.Mode()}}
		}
		if inMode := i.inMode(ctx, entry); inMode.Err() == nil {
			i.asMode, i.askedOf = inMode, process.PID
		}
	}
	if i.asMode.IsNo() {
		return changed(rollout.ReasonMode, fmt.Sprintf("the guard does not run in mode %s any more", i.Request.Target.Mode()))
	}
	unit, err := i.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return report
	}
	return i.reportUnitChange(report, unit.Files)
}

func same(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (i *Installer) newReport() rollout.Report {
	return rollout.Report{RequestID: i.Request.ID(), Pool: i.Pool.Name, Target: i.Request.Target}
}

// refusal is why a node is not changed.
type refusal struct {
	reason  rollout.Reason
	message string
}

func (i *Installer) refuse(report rollout.Report, refusals ...refusal) rollout.Report {
	base := i.newReport()
	report.RequestID, report.Pool, report.Target = base.RequestID, base.Pool, base.Target
	var messages []string
	for _, r := range refusals {
		messages = append(messages, r.message)
	}
	report.Phase, report.Reason, report.Message = rollout.Refused, refusals[0].reason, "Nothing was changed: "+strings.Join(messages, "; ")
	return report
}

func reportOf(entry *journal.Entry) rollout.Report {
	return rollout.Report{
		RequestID: entry.RequestID, Pool: entry.Pool, Target: entry.Target,
		Before: entry.Before, Offered: entry.Offered,
		Protected: entry.Protected, Held: len(entry.Held), HeldPods: entry.HeldPods,
		Containers: len(entry.Containers), Stopped: entry.Stopped,
		Started: metav1.NewTime(entry.Started),
	}
}

// rolledBackReport is the report of a change that was rolled back.
func (i *Installer) rolledBackReport(ctx context.Context, entry *journal.Entry) rollout.Report {
	report := reportOf(entry)
	report.Architecture = architecture()
	report.Reason, report.Attempt = entry.Reason, entry.ID
	now, err := i.oldKubelet(ctx, entry)
	report.Now = now
	if err != nil {
		report.Phase = rollout.Failed
		report.Message = fmt.Sprintf("%s. The old kubelet was restored and is not healthy: %v. Check the node (journalctl -u kubelet)", entry.Message, err)
		return report
	}
	report.Phase = rollout.RolledBack
	runs := fmt.Sprintf("The old kubelet (%s) runs again", describe(now))
	if entry.Before.SHA256 != "" && now.SHA256 != entry.Before.SHA256 {
		runs = fmt.Sprintf("The node's own kubelet runs again, which was upgraded during the change: %s before, %s now", describe(entry.Before), describe(now))
	}
	report.Message = fmt.Sprintf("%s. %s. To try again: kubectl guard rollout resume --pool %s", entry.Message, runs, entry.Pool)
	return report
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
	if report.Target == rollout.Observe {
		return
	}
	kind, reason := corev1.EventTypeWarning, ""
	switch report.Phase {
	case rollout.Done:
		kind, reason = corev1.EventTypeNormal, rollout.EventDone
	case rollout.Refused:
		reason = rollout.EventRefused
	case rollout.RolledBack:
		reason = rollout.EventRolledBack
	case rollout.Failed:
		reason = rollout.EventFailed
		if report.Kept {
			reason = rollout.EventKept
		}
	default:
		return
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

var errNotRunning = errors.New("kubelet.service does not run")
