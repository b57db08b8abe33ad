package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/pkg/rollout"
)

const (
	// certain is how often in a row something is found wrong that does not get right by
	// waiting, until it counts.
	certain = 3
	// enoughRestarts of a kubelet that ends by itself are enough.
	enoughRestarts = 3
	// unclearFor is how long the reason of a stop is waited for. A status that the kubelet
	// writes is back from the API server within a second or two.
	unclearFor = 8 * time.Second
	// queryReady and queryUnready are how many checks of the node there are for one query of
	// the API server, while it reports that the node is ready and while it does not.
	queryReady, queryUnready = 5, 2
)

// failure is what was found wrong.
type failure struct {
	// entry is the change; a verifier leaves it to verify.
	entry   *journal.Entry
	reason  rollout.Reason
	message string
	stopped []string
	// definite: waiting does not help.
	definite bool
}

// verifier checks a node until it is healthy, or certainly not.
type verifier struct {
	*Installer
	entry *journal.Entry
	// seen are the containers that ran before or since, missing has when one of these was
	// first found missing, and ended is how many are.
	seen    map[string]cri.Container
	missing map[string]time.Time
	ended   int
	// deleted are pods whose deletion was requested.
	deleted map[types.UID]bool
	// process is the one whose record of stops is read, and stoppedBefore what it had
	// counted before the containers were noted; NotCounted: not known yet. restartsBefore
	// is that of its restarts. broken explains why the record is not complete; "" when it is.
	process        int
	stoppedBefore  int
	restartsBefore uint32
	broken         string
	// heartbeat is the last one when the new kubelet certainly had been started; nil: not
	// known yet. The clock of the node may be set at any time, so only another one is new.
	heartbeat *time.Time
	// heard: the API server has heard from the kubelet since. notReady is what was wrong
	// with the node by the API server, at queriedNode; nil for nothing.
	heard       bool
	notReady    *failure
	queriedNode time.Time
}

func (i *Installer) verifier(entry *journal.Entry, stoppedBefore int) *verifier {
	v := &verifier{
		Installer: i, entry: entry, stoppedBefore: stoppedBefore,
		seen: map[string]cri.Container{}, missing: map[string]time.Time{}, deleted: map[types.UID]bool{},
	}
	for _, c := range entry.Containers {
		v.seen[c.ID] = c
	}
	return v
}

// verify verifies a kubelet that was started by the change, and confirms the change.
func (i *Installer) verify(ctx context.Context, s State) (*rollout.Report, error) {
	found, ended := i.verifier(s.entry, 0).run(ctx)
	if found != nil {
		found.entry, i.failure = s.entry, found
		return nil, nil
	}
	if err := i.store().Confirm(s.entry.ID, ended); err != nil {
		klog.ErrorS(err, "Could not confirm the change")
		// The timer was quicker, or the disk is full: either way it does not count.
		i.failure = &failure{entry: s.entry, reason: rollout.ReasonInterrupted, message: fmt.Sprintf("the change was verified, but it could not be confirmed: %v", err)}
		return nil, nil
	}
	i.verified = true
	i.stopTimer(ctx)
	return nil, nil
}

// run returns what is wrong with the kubelet, and nil when it was healthy for as long as the
// request says. ended is how many containers have ended for reasons of their own.
//
// It checks until the settle time of the kubelet has ended, and the fate of each container
// is clear. Only the kubelet restarts the settle time: containers come and go.
func (v *verifier) run(ctx context.Context) (found *failure, ended int) {
	entry := v.entry
	deadline := time.Now().Add(timeLeft(entry, uptime())) // by a clock that nobody sets
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	v.noteHeartbeat(ctx)
	last := &failure{reason: rollout.ReasonInterrupted, message: "the installer was stopped for too long to see whether the change was verified"}
	var healthySince time.Time
	inARow, pid, restarts := 0, 0, 0
	restartedBy := ""
	// restart has the settle time start again.
	restart := func(why string) {
		if !healthySince.IsZero() {
			restarts, restartedBy = restarts+1, why
			klog.InfoS("The settle time starts again", "why", why)
		}
		healthySince = time.Time{}
	}
	for {
		started := time.Now()
		found, containers, process := v.check(ctx)
		if ctx.Err() != nil {
			return overdue(entry, last, restarts, restartedBy), 0 // the last check was cut off
		}
		if process != pid && pid != 0 {
			restart("the kubelet was started again")
		}
		pid = process
		if found != nil {
			restart(found.message)
		} else {
			if healthySince.IsZero() {
				healthySince = time.Now()
				klog.InfoS("The kubelet is healthy", "pid", pid, "settles", entry.Settle)
			}
			found = containers
			if found == nil && time.Since(healthySince) >= entry.Settle {
				if v.queriedNode.Before(started) {
					v.queryNode(ctx)
				}
				if found = v.notReady; found != nil {
					restart(found.message)
				} else if found = v.foreignRuntime(ctx); found == nil {
					return nil, v.ended
				}
			}
		}
		switch {
		case found == nil:
			inARow = 0
			last = &failure{reason: rollout.ReasonNotHealthy, message: fmt.Sprintf("the kubelet was not healthy for %s without a break", entry.Settle)}
		default:
			if last.message != found.message {
				klog.InfoS("Not healthy yet", "reason", found.reason, "message", found.message)
			}
			last = found
			if !found.definite {
				inARow = 0
			} else if inARow++; inARow >= certain {
				return found, 0
			}
		}
		if healthySince.IsZero() && inARow == 0 && time.Until(deadline) < entry.Settle {
			return overdue(entry, last, restarts, restartedBy), 0 // no time is left to settle
		}
		select {
		case <-ctx.Done():
			return overdue(entry, last, restarts, restartedBy), 0
		case <-time.After(v.Poll):
		}
	}
}

// uptime is a clock that nobody sets. Tests have one of their own.
var uptime = host.Uptime

// timeLeft returns how long a change may take until its deadline. It goes by the time
// since the boot: a clock that is set in the middle of a change ends no change.
func timeLeft(entry *journal.Entry, now time.Duration) time.Duration {
	if entry.Uptime == 0 {
		return time.Until(entry.Deadline)
	}
	return entry.Deadline.Sub(entry.Started) - (now - entry.Uptime)
}

// overdue is the failure of a change that was not healthy in time.
func overdue(entry *journal.Entry, last *failure, restarts int, restartedBy string) *failure {
	found := *last
	found.message = fmt.Sprintf("not healthy within %s: %s", entry.Deadline.Sub(entry.Started).Round(time.Second), last.message)
	if restarts > 0 {
		found.message += fmt.Sprintf(" (the settle time of %s started again %d times, the last time because: %s)", entry.Settle, restarts, restartedBy)
	}
	return &found
}

// check returns what is wrong with the kubelet, and with containers; nil for nothing.
func (v *verifier) check(ctx context.Context) (kubelet, containers *failure, process int) {
	// Containers first: what the kubelet has stopped by now, it has counted when it is queried.
	running, err := v.Running(ctx, v.entry.Runtime)
	kubelet, answer, process := v.checkKubelet(ctx)
	if err != nil {
		containers = &failure{reason: rollout.ReasonRuntime, message: err.Error()}
	} else if kubelet == nil {
		containers = v.checkContainers(ctx, running, answer)
	}
	return kubelet, containers, process
}

// checkKubelet checks the kubelet once. It returns what is wrong, its response, and its
// process.
func (v *verifier) checkKubelet(ctx context.Context) (*failure, kubelet.Answer, int) {
	var answer kubelet.Answer
	process := host.Process{}
	wrong := func(reason rollout.Reason, definite bool, format string, arguments ...any) (*failure, kubelet.Answer, int) {
		return &failure{reason: reason, definite: definite, message: fmt.Sprintf(format, arguments...)}, answer, process.PID
	}
	entry, want := v.entry, v.entry.Kubelet
	unit, err := v.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return wrong(rollout.ReasonNotHealthy, false, "%v", err)
	}
	if v.stoppedBefore == kubelet.NotCounted {
		v.restartsBefore = unit.Restarts
	}
	if unit.Restarts > v.restartsBefore {
		v.broken = fmt.Sprintf("the kubelet has ended %d times by itself", unit.Restarts)
	}
	if unit.Restarts >= enoughRestarts {
		return wrong(rollout.ReasonNotStarted, true, "the kubelet %s has ended %d times by itself (journalctl -u kubelet on the node explains why)", want.Version, unit.Restarts)
	}
	if !unit.Running() {
		return wrong(rollout.ReasonNotStarted, false, "%v: %s (%s) (journalctl -u kubelet on the node explains why)", errNotRunning, unit.Active, unit.Sub)
	}
	if process, err = v.Root.Process(unit.MainPID); err != nil {
		return wrong(rollout.ReasonNotStarted, false, "%v", err)
	}
	if process.SHA256 != want.SHA256 {
		return wrong(rollout.ReasonOtherKubelet, false, "the program that runs has the checksum %s, not %s", process.SHA256, want.SHA256)
	}
	if answer, _, err = v.Ask(ctx, entry.Address, entry.Pin); err != nil {
		return wrong(rollout.ReasonNotHealthy, false, "%v", err)
	}
	switch {
	case entry.Target.Guarded() && !answer.Guarded:
		return wrong(rollout.ReasonUnguarded, true, "the kubelet %s runs without the guard", answer.Version)
	case entry.Target.Guarded() && answer.Mode != want.Mode:
		return wrong(rollout.ReasonMode, true, "the guard runs in mode %s, not %s", answer.Mode, want.Mode)
	case !entry.Target.Guarded() && answer.Guarded:
		return wrong(rollout.ReasonGuarded, true, "the kubelet still runs with the guard")
	case answer.Version != want.Version:
		return wrong(rollout.ReasonOtherKubelet, true, "the kubelet reports that it is %s, not %s", answer.Version, want.Version)
	}
	if v.process != 0 && v.process != process.PID {
		v.broken = "the kubelet was started again"
	}
	v.process = process.PID
	checks := queryReady
	if v.notReady != nil {
		checks = queryUnready
	}
	if v.queriedNode.IsZero() || time.Since(v.queriedNode) >= time.Duration(checks)*v.Poll {
		v.queryNode(ctx)
	}
	return v.notReady, answer, process.PID
}

// queryNode queries the API server whether the node is ready, and notes the response.
func (v *verifier) queryNode(ctx context.Context) {
	v.queriedNode = time.Now()
	v.notReady = v.checkNode(ctx, v.entry.Kubelet.Version)
}

// checkNode checks whether the API server hears from the kubelet. Once it has heard from it
// since the change, that is not queried again: a later response has no more.
func (v *verifier) checkNode(ctx context.Context, version string) *failure {
	wrong := func(format string, arguments ...any) *failure {
		return &failure{reason: rollout.ReasonNotReady, message: fmt.Sprintf(format, arguments...)}
	}
	if !v.heard {
		heard, err := v.hears(ctx)
		if err != nil {
			return wrong("%v", err)
		}
		if !heard {
			return wrong("the API server has not heard from the kubelet since it was restarted")
		}
		v.heard = true
	}
	node, err := v.Cluster.Node(ctx)
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

// noteHeartbeat reads the last heartbeat of the kubelet that ran before. An API server that
// does not respond delays no check of the new one: the first heartbeat that is read later
// counts as the previous one.
func (v *verifier) noteHeartbeat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := v.hears(ctx); err != nil {
		klog.ErrorS(err, "Could not read the last heartbeat, will try again")
	}
}

// hears reports whether the last heartbeat is another one than at the first call.
func (v *verifier) hears(ctx context.Context) (bool, error) {
	heartbeat, err := v.Cluster.Heartbeat(ctx)
	if err != nil {
		return false, err
	}
	if v.heartbeat == nil {
		v.heartbeat = &heartbeat
	}
	return !heartbeat.Equal(*v.heartbeat), nil
}

// checkContainers finds containers that ran before and do not any more.
func (v *verifier) checkContainers(ctx context.Context, running []cri.Container, answer kubelet.Answer) *failure {
	found := func(definite bool, format string, arguments ...any) *failure {
		return &failure{reason: rollout.ReasonContainers, definite: definite, message: fmt.Sprintf(format, arguments...)}
	}
	for _, c := range running {
		if _, known := v.seen[c.ID]; !known {
			v.seen[c.ID] = c
		}
	}
	if answer.Stops == kubelet.NotCounted {
		v.broken = "the kubelet does not count what it stops"
	} else if v.stoppedBefore == kubelet.NotCounted {
		v.stoppedBefore = answer.Stops
	}
	missing := containers.Missing(v.entry.Containers, running)
	v.ended = len(missing)
	if len(missing) == 0 {
		return nil
	}
	evidence, err := v.evidence(ctx, missing, running, answer)
	if err != nil {
		return found(false, "%d containers do not run any more, and the reason is not known: %v", len(missing), err)
	}
	unexplained := containers.Unexplained(answer.Stops-v.stoppedBefore, slices.Collect(maps.Values(v.seen)), evidence)
	var stopped, unclear []string
	for _, c := range missing {
		first, seen := v.missing[c.ID]
		if !seen {
			v.missing[c.ID] = time.Now()
		}
		switch containers.Judge(c, evidence) {
		case containers.Stopped:
			stopped = append(stopped, c.String())
		case containers.Unclear:
			switch {
			case v.broken != "", !seen:
				unclear = append(unclear, c.String())
			case unexplained == 0: // it ended by itself
			case time.Since(first) < min(unclearFor, v.entry.Settle/2):
				unclear = append(unclear, c.String())
			default:
				stopped = append(stopped, c.String())
			}
		}
	}
	switch {
	case len(stopped) > 0:
		f := found(true, "%d containers were stopped by the change: %s", len(stopped), list(stopped))
		f.stopped = stopped
		return f
	case len(unclear) > 0 && v.broken != "":
		return found(false, "%d containers do not run any more, and whether the kubelet stopped them is not known, since %s: %s", len(unclear), v.broken, list(unclear))
	case len(unclear) > 0:
		return found(false, "%d containers do not run any more: %s", len(unclear), list(unclear))
	}
	return nil
}

// evidence gathers what is known about the pods of missing containers. The kubelet was
// queried before.
func (v *verifier) evidence(ctx context.Context, missing, running []cri.Container, answer kubelet.Answer) (containers.Evidence, error) {
	pods, err := v.Pods(ctx, v.entry.Address, v.entry.Pin)
	if err != nil {
		return containers.Evidence{}, err
	}
	e := containers.Evidence{
		Pods: pods.Items, Deleted: v.deleted, Running: running, FailedProbes: pods.FailedProbes,
		Audited: map[types.UID]bool{}, Held: v.entry.Held, Released: v.entry.ReleaseHeld,
	}
	known := map[types.UID]bool{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		known[pod.UID] = true
		if pod.DeletionTimestamp != nil {
			v.deleted[pod.UID] = true
		}
	}
	if answer.Pods != nil {
		for _, pod := range answer.Pods.Items {
			for _, attempt := range pod.Audited {
				if !attempt.LastAttempt.Before(v.entry.Started) {
					e.Audited[pod.UID] = true
				}
			}
		}
	}
	// That the kubelet does not have a pod is no evidence: it may have lost it. A pod from
	// a file has no object that the API server could say anything about.
	for _, c := range v.seen {
		if known[c.PodUID] || v.deleted[c.PodUID] || c.Static {
			continue
		}
		known[c.PodUID] = true
		pod, err := v.Cluster.Pod(ctx, c.Namespace, c.Pod)
		if err != nil {
			return containers.Evidence{}, err
		}
		if pod == nil || pod.UID != c.PodUID || pod.DeletionTimestamp != nil {
			v.deleted[c.PodUID] = true
			continue
		}
		e.Pods = append(e.Pods, *pod)
	}
	return e, nil
}

// foreignRuntime finds out whether the containers that were checked are those of the kubelet.
func (v *verifier) foreignRuntime(ctx context.Context) *failure {
	pods, err := v.Pods(ctx, v.entry.Address, v.entry.Pin)
	if err != nil {
		return &failure{reason: rollout.ReasonNotHealthy, message: err.Error()}
	}
	running, err := v.Running(ctx, v.entry.Runtime)
	if err != nil {
		return &failure{reason: rollout.ReasonRuntime, message: err.Error()}
	}
	if why := containers.Foreign(running, pods.Items); why != "" {
		return &failure{reason: rollout.ReasonRuntime, message: fmt.Sprintf("%s is not the container runtime of the kubelet: %s", v.entry.Runtime, why)}
	}
	return nil
}
