package node

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// This file holds what the chaos run decides, and what must come of it. A plan
// follows from its seed alone: nothing in it depends on what a kubelet does, or
// when, so that a seed repeats the same operations in the same order. The model
// that bounds the choices therefore also says, before anything runs, what must
// become of each pod.

// chaosAction is an operation on one pod.
type chaosAction string

const (
	createPod        chaosAction = "create"
	createPlainPod   chaosAction = "create unprotected"
	deletePod        chaosAction = "delete"
	forceDelete      chaosAction = "delete by force"
	recordedDelete   chaosAction = "delete by force, with a record"
	putLabel         chaosAction = "put the label"
	removeLabel      chaosAction = "remove the label"
	loseObject       chaosAction = "lose the key in etcd"
	putObjectBack    chaosAction = "put the key back"
	passDeadline     chaosAction = "pass the active deadline"
	claimFailed      chaosAction = "patch the phase to Failed"
	killProcess      chaosAction = "kill the container's process"
	killSandbox      chaosAction = "kill the pause process"
	writeRecord      chaosAction = "write a PodDeletion record"
	writeReleaseFile chaosAction = "write a release file"
)

// ends reports whether the action is meant to end a pod.
func (a chaosAction) ends() bool {
	switch a {
	case deletePod, forceDelete, recordedDelete, removeLabel, writeRecord, writeReleaseFile:
		return true
	}
	return false
}

// chaosWeights says how often an action is chosen where it is possible.
var chaosWeights = []struct {
	action chaosAction
	weight int
}{
	{createPod, 12}, {createPlainPod, 5},
	{deletePod, 3}, {forceDelete, 3}, {recordedDelete, 2},
	{putLabel, 3}, {removeLabel, 1},
	{loseObject, 5}, {putObjectBack, 4}, {passDeadline, 2}, {claimFailed, 3}, {killProcess, 3}, {killSandbox, 1},
	{writeRecord, 2}, {writeReleaseFile, 2},
}

// chaosMoment is what is known about the kubelet while a step is made.
type chaosMoment string

const (
	// whileCalm: the kubelet has seen everything before, and is not killed before the
	// step has had its effect.
	whileCalm chaosMoment = "calm"
	// whileUp: the kubelet starts or runs, and may be killed at any time.
	whileUp chaosMoment = "up"
	// whileDown: no kubelet runs.
	whileDown chaosMoment = "down"
)

// chaosFate is what must become of a pod.
type chaosFate string

const (
	// mustRun: a container of the pod runs at the end, in the same process throughout
	// unless the run itself killed that.
	mustRun chaosFate = "runs"
	// mustEnd: nothing of the pod runs at the end.
	mustEnd chaosFate = "ends"
	// mayEither: it depends on what the kubelet saw before it was killed. A pod that
	// still runs must then be known to the guard, and end with a record.
	mayEither chaosFate = "open"
)

// chaosObject is where the object of a pod is.
type chaosObject string

const (
	objectInAPI   chaosObject = "in the API"
	objectLost    chaosObject = "lost"
	objectRemoved chaosObject = "removed"
)

// plannedPod is what the plan knows about a pod.
type plannedPod struct {
	name string
	// protected: the object, as it was last, has the label; sandboxLabel: it had it
	// when the pod was created.
	protected, sandboxLabel bool
	object                  chaosObject
	deleting                bool
	// settled: the kubelet is known to have acted on creation, label and phase.
	settled bool
	// faulted: a stock kubelet would stop or restart the pod.
	faulted, deadline            bool
	processKilled, sandboxKilled bool
	fate                         chaosFate
}

// possible reports whether an action on the pod makes sense and has an outcome that
// the model knows.
func (p *plannedPod) possible(action chaosAction) bool {
	whole := p.object == objectInAPI && !p.deleting
	switch action {
	case deletePod:
		return whole
	case forceDelete:
		return p.object == objectInAPI && (p.fate != mustEnd || p.deleting)
	case recordedDelete:
		return p.object == objectInAPI && (p.fate != mustEnd || p.deleting) && p.protected
	case putLabel:
		return whole && !p.protected && !p.faulted && p.settled && p.fate == mustRun
	case removeLabel:
		return whole && p.protected && p.settled && p.fate == mustRun
	case loseObject, claimFailed:
		return whole && p.settled && p.fate == mustRun
	case putObjectBack:
		return p.object == objectLost && p.protected && p.fate == mustRun
	case passDeadline:
		return whole && p.settled && p.fate == mustRun && !p.deadline
	case killProcess, killSandbox:
		return p.settled && p.fate == mustRun && !p.processKilled && !p.sandboxKilled
	case writeRecord, writeReleaseFile:
		return p.object != objectInAPI && p.fate != mustEnd
	}
	return false
}

// apply takes note of an action, and is the model: it says what becomes of the pod.
func (p *plannedPod) apply(action chaosAction, moment chaosMoment) {
	switch action {
	case deletePod:
		p.deleting = true
		switch {
		// The API server removes a pod that claims to have ended at once, as by
		// force, and a kubelet that is away does not see it.
		case !p.settled && p.protected, p.faulted && p.sandboxLabel && !p.protected:
			p.fate = mayEither
		default:
			p.fate = mustEnd
		}
	case forceDelete:
		switch {
		case !p.protected && (p.sandboxLabel || !p.settled && p.fate != mustEnd):
			// Without an object, a kubelet that starts judges by the sandbox.
			p.fate = mayEither
		case !p.protected:
			p.fate = mustEnd
		case moment == whileCalm && p.settled:
			p.fate = mustEnd
		case moment == whileDown && p.settled && !p.deleting && p.fate == mustRun:
			// The documented hold: nothing distinguishes this from a lost key.
		default:
			p.fate = mayEither
		}
		p.object = objectRemoved
	case recordedDelete:
		// The record is looked up for held pods. Whether this one will be held does
		// not matter: it ends either way.
		p.object, p.fate = objectRemoved, mustEnd
	case putLabel:
		p.protected, p.settled = true, false
	case removeLabel:
		p.protected, p.settled = false, false
		if p.faulted {
			p.fate = mayEither
		}
	case loseObject:
		p.object = objectLost
		if !p.protected {
			p.faulted, p.fate = true, mustEnd
			if p.sandboxLabel {
				p.fate = mayEither
			}
		}
	case putObjectBack:
		p.object = objectInAPI
	case passDeadline:
		p.faulted, p.deadline = true, true
		if !p.protected {
			p.fate = mustEnd
		}
	case claimFailed:
		if p.protected {
			p.settled = false
		} else {
			p.faulted, p.fate = true, mayEither
		}
	case killProcess:
		p.processKilled = true
	case killSandbox:
		p.sandboxKilled = true
		if p.protected {
			p.faulted = true
		} else {
			// Until it has its new sandbox: a label that comes while the kubelet stops
			// the containers of the old one comes too late.
			p.settled = false
		}
	case writeRecord, writeReleaseFile:
		p.fate = mustEnd
	}
}

// sameProcess reports whether the process that the pod had is the one that it must
// still have.
func (p *plannedPod) sameProcess() bool {
	return p.fate == mustRun && !p.processKilled && (!p.sandboxKilled || p.protected)
}

// chaosStep is one operation of a plan.
type chaosStep struct {
	action chaosAction
	pod    int
	// after is how long after the step before.
	after time.Duration
}

// chaosRound is one life of the kubelet, and the time until the next.
type chaosRound struct {
	// checkpoint: once healthy, the kubelet is given the time to bring all pods
	// into the state that they must be in.
	checkpoint bool
	calm       []chaosStep
	// early: the time to the kill counts from the start of the kubelet, not from
	// when it is healthy.
	early     bool
	killAfter time.Duration
	up, down  []chaosStep
}

// chaosPlan is a whole run.
type chaosPlan struct {
	seed   uint64
	rounds []chaosRound
	// pods as they are at the end.
	pods []*plannedPod
}

// Bounds of a plan.
const (
	// chaosPods is how many pods that may run there are at a time.
	chaosPods = 12
	// longLife is one in which the guard comes to look up records (every 10 s).
	longLife = 12 * time.Second
)

// newChaosPlan decides everything. The plan of fewer kills is the start of
// that of more.
func newChaosPlan(seed uint64, kills int) *chaosPlan {
	random := rand.New(rand.NewPCG(seed, 0))
	upTo := func(d time.Duration) time.Duration {
		return time.Duration(random.Int64N(int64(d))).Round(time.Millisecond)
	}
	plan := &chaosPlan{seed: seed}
	steps := func(moment chaosMoment, atMost int, apart time.Duration) []chaosStep {
		var chosen []chaosStep
		for range random.IntN(atMost + 1) {
			if step, ok := plan.choose(random, moment); ok {
				step.after = upTo(apart)
				chosen = append(chosen, step)
			}
		}
		return chosen
	}
	for n := range kills {
		var r chaosRound
		// The first round finds a kubelet that knows its first pods.
		r.checkpoint = n == 0 || random.IntN(3) == 0
		if r.checkpoint {
			for _, p := range plan.pods {
				p.settled = true
			}
			if step, ok := plan.chooseCalm(random); ok {
				r.calm = append(r.calm, step)
			}
		}
		switch lot := random.IntN(30); {
		case lot == 0:
			r.killAfter = longLife
		case lot < 10 && !r.checkpoint:
			r.early, r.killAfter = true, upTo(2*time.Second)
		default:
			r.killAfter = upTo(2 * time.Second)
		}
		r.up = steps(whileUp, 4, 600*time.Millisecond)
		r.down = steps(whileDown, 2, 300*time.Millisecond)
		plan.rounds = append(plan.rounds, r)
	}
	return plan
}

// choose picks an action and a pod for it.
func (plan *chaosPlan) choose(random *rand.Rand, moment chaosMoment) (chaosStep, bool) {
	type choice struct {
		action chaosAction
		weight int
		pods   []int
	}
	var choices []choice
	total, running, unclear := 0, 0, 0
	for _, p := range plan.pods {
		switch p.fate {
		case mustRun:
			running++
		case mayEither:
			unclear++
		}
	}
	for _, w := range chaosWeights {
		c := choice{action: w.action, weight: w.weight}
		creates := w.action == createPod || w.action == createPlainPod
		switch {
		case creates && running+unclear < chaosPods:
			c.pods = append(c.pods, len(plan.pods))
		case creates:
			continue
		}
		for i, p := range plan.pods {
			// Pods are to live through many kills.
			if p.possible(w.action) && (running > chaosPods/2 || p.fate != mustRun || !w.action.ends()) {
				c.pods = append(c.pods, i)
			}
		}
		if len(c.pods) > 0 {
			choices = append(choices, c)
			total += c.weight
		}
	}
	if total == 0 {
		return chaosStep{}, false
	}
	lot := random.IntN(total)
	for _, c := range choices {
		if lot -= c.weight; lot < 0 {
			step := chaosStep{action: c.action, pod: c.pods[random.IntN(len(c.pods))]}
			plan.apply(step, moment)
			return step, true
		}
	}
	return chaosStep{}, false
}

// chooseCalm picks, every other time, a pod whose forced deletion the kubelet
// must see.
func (plan *chaosPlan) chooseCalm(random *rand.Rand) (chaosStep, bool) {
	var pods []int
	for i, p := range plan.pods {
		if p.possible(forceDelete) && p.protected && p.fate == mustRun {
			pods = append(pods, i)
		}
	}
	if len(pods) <= chaosPods/2 || random.IntN(2) == 0 {
		return chaosStep{}, false
	}
	step := chaosStep{action: forceDelete, pod: pods[random.IntN(len(pods))]}
	plan.apply(step, whileCalm)
	return step, true
}

func (plan *chaosPlan) apply(step chaosStep, moment chaosMoment) {
	switch step.action {
	case createPod, createPlainPod:
		labelled := step.action == createPod
		plan.pods = append(plan.pods, &plannedPod{
			name:      fmt.Sprintf("pod-%d", step.pod),
			protected: labelled, sandboxLabel: labelled, object: objectInAPI, fate: mustRun,
		})
	default:
		plan.pods[step.pod].apply(step.action, moment)
	}
}

// count returns how often each action is in the plan.
func (plan *chaosPlan) count() map[chaosAction]int {
	counts := map[chaosAction]int{}
	for _, r := range plan.rounds {
		for _, step := range slices.Concat(r.calm, r.up, r.down) {
			counts[step.action]++
		}
	}
	return counts
}

// String lists what a plan does, in the order of chaosWeights.
func (plan *chaosPlan) String() string {
	counts := plan.count()
	var parts []string
	for _, w := range chaosWeights {
		if counts[w.action] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", w.action, counts[w.action]))
		}
	}
	return strings.Join(parts, ", ")
}

func TestChaosPlan(t *testing.T) {
	t.Run("follows from its seed", func(t *testing.T) {
		assert.Equal(t, newChaosPlan(7, 200), newChaosPlan(7, 200))
		assert.NotEqual(t, newChaosPlan(7, 200), newChaosPlan(8, 200))
	})
	t.Run("starts as a longer one does", func(t *testing.T) {
		assert.Equal(t, newChaosPlan(7, 15).rounds, newChaosPlan(7, 200).rounds[:15])
	})
	t.Run("has every action, every kind of kill and every fate", func(t *testing.T) {
		for seed := range uint64(20) {
			plan := newChaosPlan(seed, 200)
			for _, w := range chaosWeights {
				assert.Positive(t, plan.count()[w.action], "seed %d: %s", seed, w.action)
			}
			calmSteps, early, long, whileDown, fates := 0, 0, 0, 0, map[chaosFate]int{}
			for _, r := range plan.rounds {
				calmSteps += len(r.calm)
				whileDown += len(r.down)
				if r.early {
					early++
				}
				if r.killAfter == longLife {
					long++
				}
			}
			for _, p := range plan.pods {
				fates[p.fate]++
			}
			for what, count := range map[string]int{
				"calm forced deletions": calmSteps, "kills during the start": early, "long lives": long, "steps while the kubelet is down": whileDown,
				"pods that must run": fates[mustRun], "pods that must end": fates[mustEnd],
			} {
				assert.Positive(t, count, "seed %d: %s", seed, what)
			}
		}
	})
}

func TestChaosModel(t *testing.T) {
	settled := func(protected bool) plannedPod {
		return plannedPod{protected: protected, sandboxLabel: protected, object: objectInAPI, settled: true, fate: mustRun}
	}
	for _, tc := range []struct {
		name   string
		pod    plannedPod
		moment chaosMoment
		steps  []chaosAction
		want   chaosFate
	}{
		{"a protected pod whose key is lost runs", settled(true), whileUp, []chaosAction{loseObject}, mustRun},
		{"an unprotected pod whose key is lost ends", settled(false), whileUp, []chaosAction{loseObject}, mustEnd},
		{"a deleted pod ends", settled(true), whileDown, []chaosAction{deletePod}, mustEnd},
		{"a forced deletion that the kubelet sees ends the pod", settled(true), whileCalm, []chaosAction{forceDelete}, mustEnd},
		{"a forced deletion that it missed is a hold", settled(true), whileDown, []chaosAction{forceDelete}, mustRun},
		{"one that it may have seen leaves the fate open", settled(true), whileUp, []chaosAction{forceDelete}, mayEither},
		{"a forced deletion with a record ends the pod", settled(true), whileDown, []chaosAction{recordedDelete}, mustEnd},
		{"a record ends a pod that is held for a missed forced deletion", settled(true), whileDown, []chaosAction{forceDelete, writeRecord}, mustEnd},
		{"a release file ends a pod whose key is lost", settled(true), whileDown, []chaosAction{loseObject, writeReleaseFile}, mustEnd},
		{"a deadline does not end a protected pod", settled(true), whileUp, []chaosAction{passDeadline, claimFailed}, mustRun},
		{"a deadline ends an unprotected pod", settled(false), whileUp, []chaosAction{passDeadline}, mustEnd},
		{"a pod whose label is removed while it is held is the stock kubelet's", settled(true), whileUp, []chaosAction{passDeadline, removeLabel}, mayEither},
		{"a new pod that is deleted by force may not have been seen at all", plannedPod{protected: true, sandboxLabel: true, object: objectInAPI, fate: mustRun}, whileDown, []chaosAction{forceDelete}, mayEither},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, action := range tc.steps {
				assert.True(t, tc.pod.possible(action), "%s is possible", action)
				tc.pod.apply(action, tc.moment)
			}
			assert.Equal(t, tc.want, tc.pod.fate)
		})
	}
}
