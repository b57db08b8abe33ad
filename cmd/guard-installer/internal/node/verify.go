package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

const (
	// certain is how often in a row something is found wrong that does not get right by
	// waiting, until it counts.
	certain = 3
	// enoughRestarts of a kubelet that ends by itself are enough.
	enoughRestarts = 3
	// unclearFor is how long a container may be missing without a word from the kubelet
	// until it has ended by itself. Events come within a second or two.
	unclearFor = 8 * time.Second
)

// failure is what was found wrong.
type failure struct {
	reason  rollout.Reason
	message string
	stopped []string
	// definite: waiting does not help.
	definite bool
}

// verifier looks at a node until it is in order, or certainly not.
type verifier struct {
	*Installer
	entry *journal.Entry
	// since is when the new kubelet certainly had been started.
	since time.Time
	// missing has when a container was first found missing; ended is how many are.
	missing map[string]time.Time
	ended   int
}

// verify returns what is wrong, and nil when everything was in order for as long as the
// request says. ended is how many containers have ended for reasons of their own.
func (i *Installer) verify(ctx context.Context, entry *journal.Entry) (found *failure, ended int) {
	ctx, cancel := context.WithDeadline(ctx, entry.Deadline)
	defer cancel()
	v := &verifier{Installer: i, entry: entry, since: time.Now(), missing: map[string]time.Time{}}
	last := failure{reason: rollout.ReasonInterrupted, message: "the installer was stopped for too long to see whether the change was in order"}
	var orderSince time.Time
	inARow := 0
	pid := 0
	for {
		found, running := v.check(ctx)
		switch {
		case found == nil && running == pid:
			if orderSince.IsZero() {
				orderSince = time.Now()
				klog.InfoS("The kubelet is in order", "pid", pid, "settles", entry.Settle)
			}
			if time.Since(orderSince) >= entry.Settle {
				return nil, v.ended
			}
			inARow = 0
			last = failure{reason: rollout.ReasonNotHealthy, message: fmt.Sprintf("the kubelet was not in order for %s at a stretch", entry.Settle)}
		case found == nil: // another process than at the last look
			orderSince, inARow = time.Time{}, 0
		case ctx.Err() != nil:
			// The last look was cut off by the deadline.
		default:
			orderSince = time.Time{}
			if last.message != found.message {
				klog.InfoS("Not in order yet", "reason", found.reason, "message", found.message)
			}
			last = *found
			if found.definite {
				if inARow++; inARow >= certain {
					return found, 0
				}
			} else {
				inARow = 0
			}
		}
		pid = running
		select {
		case <-ctx.Done():
			last.message = fmt.Sprintf("not in order within %s: %s", entry.Deadline.Sub(entry.Began).Round(time.Second), last.message)
			return &last, 0
		case <-time.After(i.Poll):
		}
	}
}

// check looks once. It returns what is wrong, and the process of the kubelet.
func (v *verifier) check(ctx context.Context) (*failure, int) {
	wrong := func(reason rollout.Reason, definite bool, format string, arguments ...any) *failure {
		return &failure{reason: reason, definite: definite, message: fmt.Sprintf(format, arguments...)}
	}
	entry, want := v.entry, v.entry.Kubelet
	unit, err := v.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return wrong(rollout.ReasonNotHealthy, false, "%v", err), 0
	}
	// Containers first: nothing else makes good for them.
	if found := v.checkContainers(ctx); found != nil {
		return found, unit.MainPID
	}
	if unit.Restarts >= enoughRestarts {
		return wrong(rollout.ReasonNotStarted, true, "the kubelet %s has ended %d times by itself (journalctl -u kubelet on the node says why)", want.Version, unit.Restarts), 0
	}
	if !unit.Running() {
		return wrong(rollout.ReasonNotStarted, false, "%v: %s (%s) (journalctl -u kubelet on the node says why)", errNotRunning, unit.Active, unit.Sub), 0
	}
	process, err := v.Root.Process(unit.MainPID)
	if err != nil {
		return wrong(rollout.ReasonNotStarted, false, "%v", err), 0
	}
	if process.SHA256 != want.SHA256 {
		return wrong(rollout.ReasonOtherKubelet, false, "the program that runs has the checksum %s, not %s", process.SHA256, want.SHA256), process.PID
	}
	answer, _, err := v.Ask(ctx, entry.Address, entry.Pin)
	if err != nil {
		return wrong(rollout.ReasonNotHealthy, false, "%v", err), process.PID
	}
	switch {
	case entry.Target.Guarded() && !answer.Guarded:
		return wrong(rollout.ReasonUnguarded, true, "the kubelet %s runs without the guard", answer.Version), process.PID
	case entry.Target.Guarded() && answer.Mode != want.Mode:
		return wrong(rollout.ReasonMode, true, "the guard runs in mode %s, asked for was %s", answer.Mode, want.Mode), process.PID
	case !entry.Target.Guarded() && answer.Guarded:
		return wrong(rollout.ReasonGuarded, true, "the kubelet still runs with the guard"), process.PID
	case answer.Version != want.Version:
		return wrong(rollout.ReasonOtherKubelet, true, "the kubelet says that it is %s, not %s", answer.Version, want.Version), process.PID
	}
	return v.checkNode(ctx, want.Version, v.since), process.PID
}

// checkNode asks whether the API server hears from the kubelet.
func (i *Installer) checkNode(ctx context.Context, version string, since time.Time) *failure {
	wrong := func(format string, arguments ...any) *failure {
		return &failure{reason: rollout.ReasonNotReady, message: fmt.Sprintf(format, arguments...)}
	}
	heartbeat, err := i.Cluster.Heartbeat(ctx)
	if err != nil {
		return wrong("%v", err)
	}
	if !heartbeat.After(since) {
		return wrong("the API server has not heard from the kubelet since it was restarted")
	}
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return wrong("%v", err)
	}
	if !nodeReady(node) {
		return wrong("node %s is not ready", node.Name)
	}
	if got := node.Status.NodeInfo.KubeletVersion; version != "" && got != version {
		return wrong("node %s has the version %s, not %s", node.Name, got, version)
	}
	return nil
}

// checkContainers finds containers that ran before and do not any more.
func (v *verifier) checkContainers(ctx context.Context) *failure {
	found := func(definite bool, message string) *failure {
		return &failure{reason: rollout.ReasonContainers, definite: definite, message: message}
	}
	running, err := v.Running(ctx, v.entry.Runtime)
	if err != nil {
		return &failure{reason: rollout.ReasonRuntime, message: err.Error()}
	}
	missing := containers.Missing(v.entry.Containers, running)
	if len(missing) == 0 {
		v.ended = 0
		return nil
	}
	evidence := containers.Evidence{Held: v.entry.Held, Released: v.entry.ReleaseHeld, Since: v.entry.Began}
	if evidence.Pods, err = v.Cluster.Pods(ctx); err != nil {
		return found(false, fmt.Sprintf("%d containers do not run any more, and it cannot be told why: %v", len(missing), err))
	}
	asked := map[types.UID]bool{}
	for _, c := range missing {
		if asked[c.PodUID] {
			continue
		}
		asked[c.PodUID] = true
		events, err := v.Cluster.Events(ctx, c.Namespace, c.PodUID)
		if err != nil {
			return found(false, fmt.Sprintf("%d containers do not run any more, and it cannot be told why: %v", len(missing), err))
		}
		evidence.Events = append(evidence.Events, events...)
	}
	var stopped, unclear []string
	for _, c := range missing {
		if _, seen := v.missing[c.ID]; !seen {
			v.missing[c.ID] = time.Now()
		}
		switch containers.Judge(c, evidence) {
		case containers.Stopped:
			stopped = append(stopped, c.String())
		case containers.Unclear:
			if time.Since(v.missing[c.ID]) < min(unclearFor, v.entry.Settle/2) {
				unclear = append(unclear, c.String())
			}
		}
	}
	if len(stopped) > 0 {
		f := found(true, fmt.Sprintf("%d containers were stopped by the change: %s", len(stopped), list(stopped)))
		f.stopped = stopped
		return f
	}
	if len(unclear) > 0 {
		return found(false, fmt.Sprintf("%d containers do not run any more: %s", len(unclear), list(unclear)))
	}
	v.ended = len(missing)
	return nil
}

// oldKubelet returns the kubelet that runs, and what is not in order with it after a
// change was taken back.
func (i *Installer) oldKubelet(ctx context.Context, entry *journal.Entry) (rollout.Kubelet, error) {
	now := rollout.Kubelet{}
	unit, err := i.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return now, err
	}
	if !unit.Running() {
		return now, fmt.Errorf("%w: %s (%s)", errNotRunning, unit.Active, unit.Sub)
	}
	process, err := i.Root.Process(unit.MainPID)
	if err != nil {
		return now, err
	}
	now.SHA256, now.Path = process.SHA256, entry.Before.Path
	if entry.Before.SHA256 != "" && process.SHA256 != entry.Before.SHA256 {
		return now, fmt.Errorf("the program that runs has the checksum %s, not %s", process.SHA256, entry.Before.SHA256)
	}
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return now, err
	}
	// The node may have booted since, with another address.
	answer, _, err := i.Ask(ctx, kubeletAddress(node), entry.Pin)
	if err != nil {
		return now, err
	}
	now.Version, now.Mode = answer.Version, answer.Mode
	if entry.Before.Version != "" && (now.Version != entry.Before.Version || now.Mode != entry.Before.Mode) {
		return now, fmt.Errorf("%s runs, before it was %s", describe(now), describe(entry.Before))
	}
	if !nodeReady(node) {
		return now, errors.New("the node is not ready")
	}
	return now, nil
}

// awaitOldKubelet waits until the old kubelet is in order, for at most Recovery, once.
func (i *Installer) awaitOldKubelet(ctx context.Context, entry *journal.Entry) {
	if i.awaited {
		return
	}
	i.awaited = true
	deadline := time.Now().Add(i.Recovery)
	for {
		_, err := i.oldKubelet(ctx, entry)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			klog.ErrorS(err, "The old kubelet is not in order", "waited", i.Recovery)
			return
		}
		time.Sleep(i.Poll)
	}
}
