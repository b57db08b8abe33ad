package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	// Ask queries the kubelet of the node. The pin is that of kubelet.Client, and is
	// returned.
	Ask func(ctx context.Context, address, pin string) (kubelet.Answer, string, error)
	// Protected queries the kubelet for the pods that its guard protects. It needs less of the
	// kubelet than Ask: one that is not healthy may still respond.
	Protected func(ctx context.Context, address, pin string) (*guard.PodList, error)
	// Pods queries the kubelet for its pods.
	Pods func(ctx context.Context, address, pin string) (kubelet.Pods, error)
	// Config queries the kubelet for the configuration that it runs with.
	Config func(ctx context.Context, address, pin string) (kubelet.Config, error)
	// TokenFile has the token for the kubelet, here.
	TokenFile string
	// Running queries the container runtime at the socket of the node.
	Running func(ctx context.Context, socket string) ([]cri.Container, error)
	// Version runs a program with --version. The root is that of the node, or empty for
	// a program of the image.
	Version func(ctx context.Context, root host.Root, program string) (string, error)
	// Accepts is kubelettrial.Accepts.
	Accepts func(ctx context.Context, root host.Root, program string, process host.Process) (string, error)
	// SetReady reports whether the pod is ready.
	SetReady func(bool) error
	// Poll is how often a node is inspected while it is being verified: 1 second.
	Poll time.Duration
	// Recovery is how long the old kubelet may take to be healthy again: 45 seconds.
	Recovery time.Duration

	remembered
	learned
	// waitedForOldKubelet: the old kubelet was waited for after a change was rolled back.
	waitedForOldKubelet bool
	// owned is the lock of the node.
	owned *host.Lock
	// unitsRemoved: the units of a change are not there, and nothing that was killed has
	// left a file.
	unitsRemoved bool
	// written is the report that the Node has, and seen the Node as it was last read for a
	// report or an inspection.
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
	// queryPause is how long a kubelet that does not respond is not queried again that was
	// started on a finished node. One that has responded is not queried again: a guard keeps its
	// mode for its life, and each response costs the API server some requests of the kubelet's.
	queryPause = time.Minute
)

// store returns the journal of the node.
func (i *Installer) store() journal.Store { return journal.Store{Root: i.Root} }

// Run works until the context ends. A change that has started is finished first. Errors are
// logged and retried: the kubelet would start an installer that exits again and again.
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

// kubelet reads the unit and the process of the kubelet. running answers whether it has one.
func (i *Installer) kubelet(ctx context.Context) (unit systemd.Unit, process host.Process, running answer.Answer) {
	unit, err := i.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil || !unit.Running() {
		return unit, process, answer.Check(false, err)
	}
	process, err = i.Root.Process(unit.MainPID)
	return unit, process, answer.Check(true, err)
}

// configurationIntact answers whether the guard's configuration that the drop-in names is
// the one that was written: its name is its checksum.
func (i *Installer) configurationIntact(dropIn *string) answer.Answer {
	name := configurationOf(dropIn)
	if name == "" {
		return answer.Yes()
	}
	data, err := i.Root.ReadText(name)
	if err != nil || data == nil {
		return answer.Check(false, err)
	}
	sum := sha256.Sum256([]byte(*data))
	return answer.Of(path.Base(name) == hex.EncodeToString(sum[:])+".yaml")
}
