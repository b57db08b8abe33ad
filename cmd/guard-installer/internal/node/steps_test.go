package node

import (
	"errors"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// stepOf returns the name and the file of a line's step, as rollBackOrKeep and rollback.
func stepOf(r row) (name, file string) {
	f := runtime.FuncForPC(reflect.ValueOf(r.step).Pointer())
	where, _ := f.FileLine(f.Entry())
	return f.Name()[strings.LastIndex(f.Name(), ".")+1:], strings.TrimSuffix(path.Base(where), ".go")
}

// found is a node that can be changed now, but for the change.
func found(change func(*State)) State {
	s := State{target: rollout.Enforce, requestID: "this", now: time.Unix(1000, 0)}
	s.claimed, s.queried, s.view = true, true, &view{complete: true}
	change(&s)
	return s
}

// entry is one whose journal has an entry of this request.
func entry(state journal.State, change func(*State)) State {
	return found(func(s *State) {
		s.entry = &journal.Entry{State: state, RequestID: "this", Kubelet: rollout.Kubelet{SHA256: "new"}}
		s.process.PID, s.process.SHA256 = 7, "new"
		s.sameBoot, s.timer, s.running, s.intact = answer.Yes(), answer.Yes(), answer.Yes(), answer.Yes()
		s.mode, s.modeOf = answer.Yes(), 7
		change(s)
	})
}

// Each line is the next one of a node that differs in little from one that can be changed.
func TestTheTable(t *testing.T) {
	unknown, report := answer.Unknown(errors.New("x")), &rollout.Report{}
	matches := func(s *State) { s.target, s.view.intact = rollout.Stock, answer.Yes() }
	states := map[string]State{
		"another installer runs on the node":      entry(journal.Switching, func(s *State) { s.other, s.finished = "x", report }),
		"done, and the kubelet was started again": entry(journal.Confirmed, func(s *State) { s.finished, s.process.PID = report, 8 }),
		"done":                                  entry(journal.Switching, func(s *State) { s.finished = report }),
		"inspected a while ago, to observe":     found(func(s *State) { s.observed, s.observedUntil = report, s.now.Add(1) }),
		"the journal cannot be read":            found(func(s *State) { s.journalErr = errors.New("x") }),
		"a change that could not be finished":   entry(journal.Switching, func(s *State) { s.nextTry, s.sameBoot = s.now.Add(1), answer.No() }),
		"a change that failed":                  entry(journal.Switching, func(s *State) { s.sameBoot = answer.No() }),
		"a change without its timer":            entry(journal.Switching, func(s *State) { s.timer = answer.No() }),
		"a change before the restart":           entry(journal.Switching, func(s *State) { s.process.Arguments = []string{"--guard-config=x"} }),
		"a change after the restart":            entry(journal.Switching, func(*State) {}),
		"a change of which too little is known": entry(journal.Switching, func(s *State) { s.timer = unknown }),
		"units of a change are left":            entry(journal.Confirmed, func(s *State) { s.units, s.claimed = true, false }),
		"it is not known whose node this is":    entry(journal.RolledBack, func(s *State) { s.claimed = false }),
		"rolled back":                           entry(journal.RolledBack, func(*State) {}),
		"kept in place":                         entry(journal.Confirmed, func(s *State) { s.entry.Reason = "x" }),
		"confirmed, and the mode is not known":  entry(journal.Confirmed, func(s *State) { s.modeOf = 6 }),
		"confirmed":                             entry(journal.Confirmed, func(*State) {}),
		"confirmed, and too little is known":    entry(journal.Confirmed, func(s *State) { s.running = unknown }),
		"in line for a slot":                    found(func(s *State) { s.inLine, s.view = &view{}, nil }),
		"not inspected":                         found(func(s *State) { s.view = nil }),
		"inspected, to observe":                 found(func(s *State) { s.target = rollout.Observe }),
		"it has what is requested":              found(matches),
		"it may have what is requested":         found(func(s *State) { matches(s); s.view.intact = unknown }),
		"not healthy":                           found(func(s *State) { s.view.refuse(rollout.ReasonNode, "x") }),
		"no slot was requested":                 found(func(s *State) { s.view.refuse(rollout.ReasonUnit, "x") }),
		"not its turn":                          found(func(s *State) { s.turn = cluster.Turn{WaitReason: "x"} }),
		"it cannot be changed":                  found(func(s *State) { s.view.refuse(rollout.ReasonUnit, "x"); s.queriedToRefuse = true }),
		"its turn":                              found(func(*State) {}),
	}
	for name, s := range states {
		assert.Equal(t, name, next(s).name)
	}
	for _, r := range table {
		if _, has := states[r.name]; !has {
			t.Errorf("no state here has the line %q", r.name)
		}
		name, file := stepOf(r)
		assert.Contains(t, strings.ToLower(name), file, "a step is in the file of its name")
	}
}

// Of all that can be found, in any combination.
func TestTheTableFinishesWhatHasStarted(t *testing.T) {
	finishes := []string{"retryLater", "rollBackOrKeep", "startRollbackTimer", "exchange", "verify", "retry"}
	answers := []answer.Answer{answer.Unknown(nil), answer.Yes(), answer.No()}
	taken := map[string]bool{}
	for n := range 2 * 2 * 2 * 2 * 2 * 2 * 3 * 5 * 3 * 3 * 3 {
		pick := func(of int) (which int) { which, n = n%of, n/of; return which }
		s := entry([]journal.State{"", journal.Switching, journal.RolledBack, journal.Confirmed, journal.Confirmed}[pick(5)], func(s *State) {
			s.sameBoot, s.timer, s.running = answers[pick(3)], answers[pick(3)], answers[pick(3)]
			s.claimed, s.units = pick(2) == 0, pick(2) == 0
			if pick(2) == 0 {
				s.entry.RequestID = "another"
			}
			if of := pick(3); of > 0 {
				s.entry.Wanted, s.process.SHA256 = new(string), "old"
				if of == 2 {
					s.dropIn = s.entry.Wanted
				}
			}
			if pick(2) == 0 {
				s.view = nil
			}
			if pick(2) == 0 {
				s.failure = &failure{}
			}
			if pick(2) == 0 {
				s.target = rollout.Stock
			}
		})
		if s.entry.State == "" {
			s.entry = nil
		}
		step, _ := stepOf(next(s))
		taken[step] = true
		require.Equal(t, s.switching(), slices.Contains(finishes, step) && !(step == "retry" && !s.switching()), "%s: %+v", step, s)
		if step == "change" {
			require.True(t, s.claimed && s.view.complete && !s.switching() && !s.units)
		}
	}
	for _, step := range append(finishes[1:], "removeUnits", "findOwnerPool", "reportRollback", "reportDone", "preflight", "change") {
		assert.True(t, taken[step], step)
	}
}
