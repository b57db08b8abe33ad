package node

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/rollout"
)

// row is one line of the table: a condition, and the step that is taken when no line above
// holds. The name of the step has that of its file.
type row struct {
	name string
	when func(State) bool
	// step returns the report that ends this call of Step; nil: the node is observed again.
	step func(*Installer, context.Context, State) (*rollout.Report, error)
	// optional: an installer that is terminated does not take the step any more.
	optional bool
}

// table is what an installer does, in this sequence of priorities.
var table = []row{
	{name: "another installer runs on the node", when: func(s State) bool { return s.other != "" }, step: (*Installer).yieldToOwner},

	// A node that has what was requested is not changed any more.
	{name: "done, and the kubelet was started again", when: func(s State) bool { return s.finished != nil && s.target.Guarded() && s.queryIsDue() }, step: (*Installer).queryMode},
	{name: "done", when: func(s State) bool { return s.finished != nil }, step: (*Installer).watch},
	{name: "inspected a while ago, to observe", when: func(s State) bool { return s.isObserved() }, step: (*Installer).preflightLater},
	{name: "the journal cannot be read", when: func(s State) bool { return s.journalErr != nil }, step: (*Installer).refuse},

	// A change that has started is finished, whatever is requested now.
	{name: "a change that could not be finished", when: func(s State) bool { return s.switching() && s.now.Before(s.nextTry) }, step: (*Installer).retryLater},
	{name: "a change that failed", when: func(s State) bool { return s.switching() && s.failed() != nil }, step: (*Installer).rollBackOrKeep},
	{name: "a change without its timer", when: func(s State) bool { return s.switching() && s.prepared().IsYes() && s.timer.IsNo() }, step: (*Installer).startRollbackTimer},
	{name: "a change before the restart", when: func(s State) bool {
		return s.switching() && s.prepared().And(s.timer).IsYes() && s.isExchanged().IsNo()
	}, step: (*Installer).exchange},
	{name: "a change after the restart", when: func(s State) bool {
		return s.switching() && s.prepared().And(s.timer).IsYes() && s.isExchanged().IsYes()
	}, step: (*Installer).verify},
	{name: "a change of which too little is known", when: func(s State) bool { return s.switching() }, step: (*Installer).retry},
	{name: "units of a change are left", when: func(s State) bool { return s.units && !s.keepsUnits }, step: (*Installer).removeUnits},

	// What became of the request before.
	{name: "it is not known whose node this is", when: func(s State) bool { return !s.claimed }, step: (*Installer).findOwnerPool},
	{name: "rolled back", when: func(s State) bool { return s.ended(journal.RolledBack) }, step: (*Installer).reportRollback},
	{name: "kept in place", when: func(s State) bool { return s.ended(journal.Confirmed) && s.entry.Kept() }, step: (*Installer).reportKept},
	{name: "confirmed, and the mode is not known", when: func(s State) bool {
		return s.confirmed().IsYes() && s.target.Guarded() && !s.verified && s.process.PID != s.modeOf
	}, step: (*Installer).queryMode},
	{name: "confirmed", when: func(s State) bool {
		return s.confirmed().IsYes() && (!s.target.Guarded() || s.mode.IsYes() || s.verified)
	}, step: (*Installer).reportDone},
	{name: "confirmed, and too little is known", when: func(s State) bool { return s.confirmed().Err() != nil }, step: (*Installer).retry},

	// The request.
	{name: "in line for a slot", when: func(s State) bool { return s.inLine != nil }, step: (*Installer).queueForSlot, optional: true},
	{name: "not inspected", when: func(s State) bool { return s.view == nil }, step: (*Installer).preflight, optional: true},
	{name: "inspected, to observe", when: func(s State) bool { return s.target == rollout.Observe }, step: (*Installer).preflightOnly},
	{name: "it has what is requested", when: func(s State) bool { return s.matches() && s.view.intact.IsYes() }, step: (*Installer).reportDoneAlready, optional: true},
	{name: "it may have what is requested", when: func(s State) bool { return s.matches() && s.view.intact.Err() != nil }, step: (*Installer).retry},
	{name: "not healthy", when: func(s State) bool { return len(s.view.refusals) > 0 && !s.refuses() }, step: (*Installer).refuseForNow},
	{name: "no slot was requested", when: func(s State) bool { return !s.queried || s.refuses() && !s.queriedToRefuse }, step: (*Installer).takeSlot, optional: true},
	{name: "not its turn", when: func(s State) bool { return s.turn.WaitReason != "" }, step: (*Installer).waitForSlot},
	{name: "it cannot be changed", when: func(s State) bool { return s.refuses() }, step: (*Installer).refuse},
	{name: "its turn", when: func(State) bool { return true }, step: (*Installer).change},
}

// next returns the first line of the table that holds.
func next(s State) row {
	for _, r := range table {
		if r.when(s) {
			return r
		}
	}
	panic("the last line of the table always holds")
}

// maxSteps is more than the table has lines: no node needs as many.
const maxSteps = 50

// Step does what can be done now and returns how the node is. The error is about what
// may be different the next time, such as an API server that does not respond.
func (i *Installer) Step(ctx context.Context) (rollout.Report, error) {
	i.learned = learned{}
	for range maxSteps {
		s, err := i.observe(context.WithoutCancel(ctx))
		if err != nil {
			return rollout.Report{}, err
		}
		r, stepCtx := next(s), ctx
		if !r.optional {
			stepCtx = context.WithoutCancel(ctx)
		}
		klog.V(4).InfoS("Step", "found", r.name)
		report, err := r.step(i, stepCtx, s)
		switch {
		case err != nil && s.switching():
			report, err = i.retryOrReport(s.entry, err)
		case !s.switching():
			i.unfinished = 0
		}
		if err != nil {
			return rollout.Report{}, err
		}
		if report != nil {
			return *report, nil
		}
	}
	return rollout.Report{}, errors.New("the steps of this installer lead nowhere")
}

// State is how a node is found before a step: what its files and its systemd say, what this
// process knows, and what the steps of this call of Step have learned. What the API server
// and the kubelet say is learned by steps only.
type State struct {
	remembered
	learned
	target    rollout.Target
	requestID string
	now       time.Time

	// other is the installer that owns the node, empty for this one.
	other string
	// entry is the journal, nil when there is none; journalErr is why it cannot be read.
	entry      *journal.Entry
	journalErr error
	// units: units of a change are there.
	units bool
	// dropIn is ours, nil when there is none; dropInErr is why it cannot be read.
	dropIn    *string
	dropInErr error
	// intact: the guard's configuration is the one that was written.
	intact answer.Answer
	// sameBoot: the node has not booted since the change started. timer: the timer of the
	// change runs.
	sameBoot, timer answer.Answer
	// unit and process are those of the kubelet. running: it has a process.
	unit    systemd.Unit
	process host.Process
	running answer.Answer
}

// remembered is what an installer knows for longer than a call of Step.
type remembered struct {
	// claimed: the node belongs to the pool.
	claimed bool
	// finished is the report of a node that has what was requested, and finishedDropIn
	// the drop-in that it has. From then on this process changes the node no more.
	finished       *rollout.Report
	finishedDropIn *string
	// mode is whether the guard has the requested mode, by the process modeOf of the
	// kubelet. modeQueried is when the last one was queried.
	mode        answer.Answer
	modeOf      int
	modeQueried time.Time
	// observed is the report of a node that was only inspected, until observedUntil.
	observed      *rollout.Report
	observedUntil time.Time
	// unfinished is how often in a row a change could not be finished, stuck the report of
	// that, and nextTry when it is tried again.
	unfinished int
	stuck      rollout.Report
	nextTry    time.Time
	// inLine is the node while it waits for nothing but a slot, turn the last response.
	inLine *view
	turn   cluster.Turn
}

// learned is what the steps of one call of Step have found out.
type learned struct {
	// failure is why the change is to be rolled back. exchanged: its kubelet was started
	// just now. verified: it was found healthy.
	failure             *failure
	exchanged, verified bool
	// keepsUnits: the units of a change could not be removed. The report goes first.
	keepsUnits bool
	// view is the node as it was inspected.
	view *view
	// queried: a slot was requested; queriedToRefuse: for a node that cannot be changed.
	queried, queriedToRefuse bool
}

// observe reads the node. The error is about the lock that makes it this installer's.
func (i *Installer) observe(ctx context.Context) (s State, err error) {
	s = State{remembered: i.remembered, learned: i.learned, target: i.Request.Target, requestID: i.Request.ID(), now: time.Now()}
	if s.other, err = i.own(); err != nil || s.other != "" || s.isObserved() {
		return s, err
	}
	if s.failure != nil {
		s.entry = s.failure.entry
		return s, nil // nothing else counts now
	}
	s.entry, s.journalErr = i.store().Read()
	s.units = i.Root.Exists(path.Join(units, recoverUnit))
	s.dropIn, s.dropInErr = i.Root.ReadText(rollout.DropIn)
	dropIn := s.finishedDropIn
	if s.finished == nil && s.entry != nil {
		dropIn = s.entry.Wanted
	}
	s.intact = i.configurationIntact(dropIn)
	s.unit, s.process, s.running = i.kubelet(ctx)
	if s.switching() {
		boot, err := i.Root.Boot()
		s.sameBoot = answer.Check(boot == s.entry.Boot, err)
		// A soft reboot leaves the boot as it was and ends the timer.
		timer, err := i.Systemd.Unit(ctx, rollbackTimer)
		s.timer = answer.Check(timer.Active == "active", err)
	}
	return s, nil
}

func (s State) isObserved() bool { return s.observed != nil && s.now.Before(s.observedUntil) }

// queryIsDue reports whether a kubelet runs that was not queried for its mode. One that does
// not respond is queried again after queryPause only.
func (s State) queryIsDue() bool {
	return s.running.IsYes() && s.process.PID != s.modeOf && s.now.Sub(s.modeQueried) >= queryPause
}

func (s State) switching() bool { return s.entry != nil && s.entry.State == journal.Switching }

// failed returns why the change is to be rolled back; nil for no reason.
func (s State) failed() *failure {
	interrupted := func(message string) *failure {
		return &failure{entry: s.entry, reason: rollout.ReasonInterrupted, message: message + ". Nothing is known to be wrong with the kubelet that was rolled out"}
	}
	switch {
	case s.failure != nil:
		return s.failure
	case s.sameBoot.IsNo():
		return interrupted("the node was started again while its kubelet was being changed")
	case s.sameBoot.IsYes() && s.unmodified().IsNo():
		return interrupted("the installer was stopped before it had exchanged the kubelet")
	}
	return nil
}

// unmodified: the drop-in is the one of the journal.
func (s State) unmodified() answer.Answer {
	return answer.Check(ptr.Equal(s.dropIn, s.entry.Wanted), s.dropInErr)
}

// prepared: the change can go on where it was interrupted, but for its timer.
func (s State) prepared() answer.Answer { return s.sameBoot.And(s.unmodified()) }

// isExchanged: the kubelet was restarted since the drop-in was changed. One that does not
// run was.
func (s State) isExchanged() answer.Answer {
	if s.exchanged || s.running.IsNo() {
		return answer.Yes()
	}
	configuration, guarded := s.process.Flag(unit.GuardFlag)
	is := !guarded
	if s.entry.Wanted != nil {
		is = s.process.SHA256 == s.entry.Kubelet.SHA256 && guarded && configuration == configurationOf(s.entry.Wanted)
	}
	return answer.Check(is, s.running.Err())
}

// ended reports whether the journal has an end of this request.
func (s State) ended(state journal.State) bool {
	return s.entry != nil && s.entry.State == state && s.entry.RequestID == s.requestID
}

// converged: the node runs what the journal says, with its configuration.
func (s State) converged() answer.Answer {
	runs := s.running
	if runs.IsYes() {
		runs = answer.Check(s.process.SHA256 == s.entry.Kubelet.SHA256, nil)
	}
	return s.unmodified().And(s.intact).And(runs)
}

// confirmed: the request is done.
func (s State) confirmed() answer.Answer {
	switch {
	case !s.ended(journal.Confirmed) || s.entry.Kept():
		return answer.No()
	case s.verified:
		return answer.Yes()
	}
	return s.converged()
}

// unknown is what keeps the installer from a decision.
func (s State) unknown() error {
	switch {
	case s.switching():
		return cmp.Or(s.sameBoot.Err(), s.unmodified().Err(), s.timer.Err(), s.isExchanged().Err())
	case s.confirmed().Err() != nil:
		return s.confirmed().Err()
	}
	return s.view.intact.Err()
}

// refuses reports whether there is a reason not to change the node that does not end by itself.
func (s State) refuses() bool {
	return slices.ContainsFunc(s.view.refusals, refusal.lasts)
}

// matches reports whether there is nothing to do. What would keep a change from being made
// does not matter then.
func (s State) matches() bool {
	v := s.view
	if !v.complete || !ptr.Equal(v.dropIn, v.wanted) && !s.onlyUnitChanged() {
		return false
	}
	if !s.target.Guarded() {
		return !v.answer.Guarded && !v.guardFlag && !v.command.HasGuard()
	}
	return v.unit.Running() && v.process.SHA256 == v.offered.SHA256 && v.answer.Guarded && v.answer.Mode == s.target.Mode()
}

// onlyUnitChanged reports whether the drop-in differs from what the request wants by the
// command of the unit alone, which was changed after the request was done.
func (s State) onlyUnitChanged() bool {
	program, config := parseDropIn(s.view.dropIn)
	return s.ended(journal.Confirmed) && !s.entry.Kept() && s.view.wanted != nil && ptr.Equal(s.view.dropIn, s.entry.Wanted) &&
		program == s.view.program && config == s.view.config
}
