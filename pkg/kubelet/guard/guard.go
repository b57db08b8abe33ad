package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/version"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/utils/clock"
)

// Annotations that the kubelet and the API server put on pods; upstream defines
// them in pkg/kubelet/types, which this package may not import.
const (
	mirrorAnnotation = "kubernetes.io/config.mirror"
	sourceAnnotation = "kubernetes.io/config.source"
	apiSource        = "api"
)

const (
	// holdLinger is how long a hold outlives the last attempt for causes whose
	// attempts repeat. The kubelet repeats them at the latest with the next pod
	// resync, at most 90 s later (syncFrequency 1m and 50 % jitter).
	holdLinger = 3 * time.Minute
	// confirmInterval is how long a result from the runtime about a held pod is trusted.
	// Some attempts repeat ten times a second (volume reconciler).
	confirmInterval = 5 * time.Second
	// goneLinger is how long the object of a pod has been absent before the guard checks
	// whether anything is left of the pod.
	goneLinger = 30 * time.Second
	// deadLinger is how long a pod of which nothing was left is not queried again. It
	// outlasts the kubelet's garbage collection, which runs once a minute.
	deadLinger = 10 * time.Minute
	// unprotectedLinger is how long a pod is remembered as unprotected after its
	// object was last seen. It has to outlast any termination.
	unprotectedLinger = 24 * time.Hour
	// tidyInterval is the period of the housekeeping of Run.
	tidyInterval = 5 * time.Second
)

// Dependencies are what a Guard is built from. Everything but Configuration may
// be left out in tests.
type Dependencies struct {
	// Configuration must be valid.
	Configuration *Configuration
	// RootDir is the kubelet's root directory.
	RootDir string
	// NodeName is used in events about pods whose object is gone.
	NodeName types.NodeName
	// Recorder emits best-effort events about the node: those about the state directory.
	Recorder record.EventRecorder
	// Events is where all other events are written. Nil without an API server.
	Events typedcorev1.EventsGetter
	// Runtime is the CRI client before it is wrapped (Guard.RuntimeService).
	Runtime internalapi.RuntimeService
	// Deletions may be nil: no PodDeletion records then.
	Deletions Deletions
	// ProcDir is the proc file system, /proc on a node. When it is empty the kernel is
	// not queried.
	ProcDir string
	// Clock defaults to the real one.
	Clock clock.WithTicker
	// HostRoot is put before the paths of cgroups. Only tests set it.
	HostRoot string
}

// kernel reports what runs according to the kernel. An error means unknown.
type kernel interface {
	// podHasProcesses reports whether a process runs in the pod's cgroup, that of its
	// sandbox included.
	podHasProcesses(uid types.UID) (bool, error)
	// containerHasProcesses reports whether a process of the container runs.
	containerHasProcesses(uid types.UID, containerID string) (bool, error)
}

// Guard has what is known about the protected pods of this node, and decides for the
// kubelet whether they may be stopped.
type Guard struct {
	config   *Configuration
	selector labels.Selector
	// allowedCauses are those of the configuration.
	allowedCauses map[Cause]bool

	stateDir string
	nodeName types.NodeName
	recorder record.EventRecorder
	runtime  internalapi.RuntimeService
	clock    clock.WithTicker
	metrics  *guardMetrics
	// kernel is nil when it is not to be queried.
	kernel kernel
	// inventory is what the kubelet has listed in the runtime.
	inventory inventory
	// deletions is nil without an API server; lookups is the state of runLookups.
	deletions Deletions
	lookups   lookups
	// events is nil without an API server; queue has what is still to be written.
	events typedcorev1.EventsGetter
	queue  eventQueue

	// syncs has the pods that the kubelet is to sync soon, so that their conditions
	// follow their holds.
	syncs chan types.UID

	mu sync.Mutex
	// runtimeBackoffUntil: the runtime timed out; do not query it before this time.
	runtimeBackoffUntil time.Time
	// records has every protected pod that was seen, until nothing of it is left.
	records map[types.UID]*podRecord
	// stops has the IDs of containers whose stop the pod's author declared.
	stops map[string]time.Time
	// unprotected has when a pod was last known to be unprotected: by its API object, or
	// by its sandbox labels when there is none. An API object outranks sandbox labels,
	// which never change.
	unprotected map[types.UID]time.Time
	// dead has until when a pod without a record counts as one that has ended, its
	// sandbox too, unless it starts again. Clean-ups try such pods as long as the runtime
	// has the sandbox.
	dead map[types.UID]time.Time
	// pass counts messages of the API source.
	pass uint64
	// watchedAt is when /guard/pods was last read.
	watchedAt time.Time

	// store is nil when there is no state directory. Once New has returned, only the
	// goroutine of saver.go uses it.
	store *store
	saver saver
	// loaded has what an earlier kubelet saved, until the first message of the
	// API source.
	loaded map[types.UID]savedPod
	// unusable has the pods whose files could not be used, until then.
	unusable []types.UID
	// unconfirmedReport is when the pods in loaded are next reported in the log.
	unconfirmedReport time.Time

	// vanished is how many pods have lost their objects. Read without mu.
	vanished atomic.Int32
	// waiting has the pods whose start waits for a held pod, by UID.
	waiting map[types.UID]*waitingPod
	// ending has the pods that were restored only to be terminated: they have evidence,
	// and their own grace period.
	ending []types.UID

	// limits has the memory limits above the pods that were refused. See memory.go.
	limits memoryLimits
}

// podRecord is what is known about one protected pod.
type podRecord struct {
	uid             types.UID
	namespace, name string
	// pod is the newest object that was seen; nil for a pod that is known from
	// its sandbox labels only.
	pod *v1.Pod
	// pass is the newest message of the API source that had the object.
	pass uint64
	// present: the newest message had the object.
	present bool
	// lost: its object was gone without a deletion that this kubelet could see, and has
	// not reappeared since.
	lost bool
	// earlier: the pod is older than this kubelet process.
	earlier bool
	// older is the object that the API shows when it is older than one that was seen
	// before; nil otherwise. See older.go.
	older *v1.Pod

	evidence *Evidence
	// evidenceOver: the life that the evidence is for has ended, because the pod was
	// stopped after it arrived, or it arrived at an earlier kubelet.
	evidenceOver bool
	exemption    exemption

	holds   map[Cause]*hold
	audited map[Cause]*hold
	allowed map[Cause]bool

	// heldSince is when the first of the present holds started.
	heldSince time.Time
	// saved is what is on disk or about to be, and never changed, only replaced;
	// savedVersion the resource version that was compared last. dirty: the disk is
	// behind.
	saved *v1.Pod
	// volumes are saved with the pod; the slice is replaced, never changed.
	volumes      []savedVolume
	savedVersion string
	dirty        bool
	file         podFile

	// aliveAt and runningAt are when the runtime last reported so.
	aliveAt, runningAt time.Time
	goneSince          time.Time
}

// New returns a Guard, or an error when the configuration is not valid. Its
// metrics are not registered; Start does that for the Guard of the process.
func New(d Dependencies) (*Guard, error) {
	if d.Configuration == nil {
		return nil, errors.New("guard: Configuration is required")
	}
	if errs := d.Configuration.Validate(); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Configuration.PodSelector)
	if err != nil {
		return nil, fmt.Errorf("podSelector: %w", err)
	}
	if d.Clock == nil {
		d.Clock = clock.RealClock{}
	}
	g := &Guard{
		config:        d.Configuration,
		selector:      selector,
		allowedCauses: map[Cause]bool{},
		stateDir:      d.Configuration.StateDir,
		nodeName:      d.NodeName,
		recorder:      d.Recorder,
		runtime:       d.Runtime,
		clock:         d.Clock,
		deletions:     d.Deletions,
		events:        d.Events,
		lookups:       lookups{wake: make(chan struct{}, 1)},
		queue:         eventQueue{added: make(chan struct{}, 1)},
		syncs:         make(chan types.UID, 256),
		records:       map[types.UID]*podRecord{},
		stops:         map[string]time.Time{},
		unprotected:   map[types.UID]time.Time{},
		dead:          map[types.UID]time.Time{},
		loaded:        map[types.UID]savedPod{},
		waiting:       map[types.UID]*waitingPod{},
		saver:         newSaver(),
		limits:        memoryLimits{reclaimed: map[string]time.Time{}, write: writeReclaim, hostRoot: d.HostRoot},
	}
	if d.ProcDir != "" {
		g.kernel = newProcesses(d.ProcDir, d.Clock)
	}
	for _, cause := range d.Configuration.AllowedCauses {
		g.allowedCauses[cause] = true
	}
	g.metrics = newMetrics(g)
	g.unconfirmedReport = g.clock.Now().Add(unconfirmedPatience)
	if g.stateDir == "" && d.RootDir != "" {
		g.stateDir = filepath.Join(d.RootDir, "guard")
	}
	g.openState()
	return g, nil
}

// Mode returns the configured mode.
func (g *Guard) Mode() Mode { return g.config.Mode }

// Version returns the version of the binary, for example v1.36.3+guard.0.1.0.
func Version() string { return version.Get().GitVersion }

// Protects reports whether a pod that the kubelet works with is of the API source
// and matches the selector. It does not allocate.
func (g *Guard) Protects(pod *v1.Pod) bool {
	source, known := pod.Annotations[sourceAnnotation]
	return (!known || source == apiSource) && g.protectsObject(pod)
}

// protectsObject is Protects for an object that comes from the API. It ignores the
// source annotation in the object: the kubelet overwrites it when it merges the object
// (podStorage.merge).
func (g *Guard) protectsObject(pod *v1.Pod) bool {
	if g.config.Mode == Off || !g.selector.Matches(labels.Set(pod.Labels)) {
		return false
	}
	_, mirror := pod.Annotations[mirrorAnnotation]
	return !mirror
}

// Refuse reports whether the kubelet must not stop the pod for the cause. It is the
// decision of most hooks. detail goes into the event and the condition.
func (g *Guard) Refuse(pod *v1.Pod, cause Cause, detail string) bool {
	r := g.recordOf(pod)
	return r != nil && g.refuse(r, cause, detail, nil)
}

// refuse decides about one attempt and records the outcome. alive reports whether the
// attempt would stop something; it is called only when that matters, and without the
// lock. When it is nil the runtime is queried, unless it has reported the pod lately.
func (g *Guard) refuse(r *podRecord, cause Cause, detail string, alive func() bool) bool {
	start := g.clock.Now()
	defer func() { g.metrics.decision.Observe(g.clock.Since(start).Seconds()) }()

	g.mu.Lock()
	facts := g.factsLocked(r, cause)
	lately := r.aliveLatelyLocked(cause, start)
	g.mu.Unlock()

	isAlive := true
	if verdict := Decide(facts); verdict == Refused || verdict == AllowedByAudit {
		switch {
		case alive != nil:
			isAlive = alive()
		case !lately:
			isAlive = g.alive(r, cause.needsRunningContainer())
		}
	}

	// Evidence may have arrived during the query of the runtime. Deciding and recording
	// are one step, or a hold could start after the evidence that was to release it.
	g.mu.Lock()
	_, unprotected := g.unprotected[r.uid]
	current := g.records[r.uid]
	if current != nil {
		r = current
	}
	facts = g.factsLocked(r, cause)
	facts.Alive, facts.Protected = isAlive, !unprotected
	verdict := Decide(facts)
	switch {
	case current != nil || unprotected:
	case verdict == AllowedNothingRuns:
		if !cause.needsRunningContainer() {
			g.dead[r.uid] = g.clock.Now().Add(confirmInterval)
		}
		g.mu.Unlock()
		return false
	default:
		g.records[r.uid] = r
	}
	after := g.noteLocked(r, cause, detail, verdict)
	g.mu.Unlock()
	g.apply(after)
	return verdict == Refused
}

func (g *Guard) factsLocked(r *podRecord, cause Cause) Facts {
	return Facts{
		Mode:         g.config.Mode,
		Protected:    true,
		Evidence:     r.evidence != nil,
		Exempted:     r.exemption.covers(cause),
		CauseAllowed: g.allowedCauses[cause],
		Alive:        true,
	}
}

// enforces reports whether attempts of the cause are refused.
func (g *Guard) enforces(cause Cause) bool {
	return g.config.Mode == Enforce && !g.allowedCauses[cause]
}

// noteLocked records the outcome: holds, exemptions, metrics, events.
func (g *Guard) noteLocked(r *podRecord, cause Cause, detail string, verdict Verdict) effects {
	switch verdict {
	case Refused:
		return g.holdLocked(r, cause, detail)
	case AllowedByAudit:
		return append(g.auditLocked(r, cause, detail), g.exemptLocked(r, cause, "mode Audit lets the kubelet end it")...)
	case AllowedByConfiguration:
		g.countAllowedLocked(r, cause)
		return g.exemptLocked(r, cause, fmt.Sprintf("allowedCauses lets the kubelet end it (%s)", cause))
	case AllowedByEvidence:
		// The kubelet before this one has counted what it was allowed to stop.
		if !r.evidenceOver {
			g.countAllowedLocked(r, ExplicitDeletion)
		}
	case AllowedNothingRuns:
		// A candidate of a preemption may not be chosen in the end. When it is, the pod
		// workers check again before they stop it.
		if cause.endsPod() && cause != Preempted {
			return g.exemptLocked(r, cause, "nothing of the pod runs any more")
		}
	}
	return nil
}

// exemptLocked makes later decisions about the same attempt consistent with this one.
// A pod that may end is not held any more.
func (g *Guard) exemptLocked(r *podRecord, cause Cause, why string) effects {
	if r.exemption.add(cause) {
		return g.releaseAllLocked(r, why)
	}
	return nil
}

func (g *Guard) countAllowedLocked(r *podRecord, cause Cause) {
	if !r.allowed[cause] {
		r.allowed[cause] = true
		g.metrics.allowed.WithLabelValues(string(cause)).Inc()
	}
}

// aliveLatelyLocked reports whether the runtime recently reported the pod as alive, so
// that it need not be queried again.
func (r *podRecord) aliveLatelyLocked(cause Cause, now time.Time) bool {
	if h := r.holds[cause]; h != nil && cause.lasting() {
		return true
	}
	// Attempted once per sync only. When the last container of a lost sandbox is gone,
	// the pod is to have a new one at once.
	if cause == SandboxChanged {
		return false
	}
	at := r.aliveAt
	if cause.needsRunningContainer() {
		at = r.runningAt
	}
	return !at.IsZero() && now.Sub(at) < confirmInterval && len(r.holds)+len(r.audited) > 0
}

// recordOf returns the record of a pod, which it creates for a new one, or nil when the
// pod is not protected. A deletionTimestamp of the object counts as evidence. The newest
// message of the API source outranks the object: a hook may have an object from before
// the label was removed.
func (g *Guard) recordOf(pod *v1.Pod) *podRecord {
	if !g.Protects(pod) {
		return nil
	}
	if pod.DeletionTimestamp != nil {
		g.noteDeletion(pod)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, unprotected := g.unprotected[pod.UID]; unprotected {
		return nil
	}
	return g.recordLocked(pod)
}

func (g *Guard) recordLocked(pod *v1.Pod) *podRecord {
	r := g.records[pod.UID]
	if r == nil {
		r = newRecord(pod.UID, pod.Namespace, pod.Name)
		g.records[pod.UID] = r
		delete(g.unprotected, pod.UID)
	}
	if r.pod == nil {
		r.pod = pod
	}
	return r
}

func newRecord(uid types.UID, namespace, name string) *podRecord {
	return &podRecord{
		uid: uid, namespace: namespace, name: name,
		holds: map[Cause]*hold{}, audited: map[Cause]*hold{}, allowed: map[Cause]bool{},
	}
}

// recordByUID returns the record of a pod that is known by its UID only, or nil when
// the pod is not protected. A pod without an API object is judged by what an earlier
// kubelet saved, and without that by the labels that the kubelet wrote on its
// sandboxes; when these cannot be read there is an error, and the pod must not be
// stopped.
func (g *Guard) recordByUID(uid types.UID) (*podRecord, error) {
	if g.config.Mode == Off {
		return nil, nil
	}
	g.mu.Lock()
	r := g.records[uid]
	_, unprotected := g.unprotected[uid]
	if r == nil && g.clock.Now().Before(g.dead[uid]) {
		unprotected = true
	}
	if saved, ok := g.loaded[uid]; r == nil && !unprotected && ok && g.protectsObject(saved.Pod) {
		// Before the first message of the API source, which a kubelet without an API
		// server never gets.
		r = newRecord(uid, saved.Pod.Namespace, saved.Pod.Name)
		r.adopt(saved)
		g.records[uid] = r
	}
	g.mu.Unlock()
	if r != nil || unprotected {
		return r, nil
	}
	found, err := g.sandboxPod(uid)
	if err != nil {
		g.runtimeFailed(err, "podUID", uid)
		return nil, fmt.Errorf("cannot determine whether pod %s is protected: %w", uid, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// The API source may have delivered the pod during the query of the runtime.
	if r := g.records[uid]; r != nil || found == nil {
		return r, nil
	}
	if !g.Protects(found) {
		g.unprotected[uid] = g.clock.Now()
		return nil, nil
	}
	// The record is kept only when something is refused for the pod: most pods that are
	// known by their sandboxes alone have ended.
	return newRecord(uid, found.Namespace, found.Name), nil
}

// RefuseUID is Refuse for callers that know the pod's UID only. It is also true while
// it is unknown whether the pod is protected.
func (g *Guard) RefuseUID(uid types.UID, cause Cause, detail string) bool {
	r, err := g.recordByUID(uid)
	if err != nil {
		return g.enforces(cause)
	}
	return r != nil && g.refuse(r, cause, detail, nil)
}

// RefuseTermination reports whether the pod workers must not make the pod terminating.
// runtimeOnly: the kubelet has no object of the pod. kill: the update is a kill, evict:
// on behalf of the eviction manager.
func (g *Guard) RefuseTermination(pod *v1.Pod, runtimeOnly, kill, evict bool) bool {
	switch {
	case runtimeOnly:
		return g.RefuseUID(pod.UID, OrphanedRuntimePod, "the kubelet has no object of this running pod")
	case pod.DeletionTimestamp != nil:
		g.Refuse(pod, PodVanished, "")
		return false
	case pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded:
		return g.Refuse(pod, TerminalPhaseReported, fmt.Sprintf("the API object says %s", pod.Status.Phase))
	case kill && evict:
		return g.Refuse(pod, Evicted, "the kubelet evicts the pod, or preempts it")
	case kill:
		return g.Refuse(pod, PodVanished, "the pod is gone from the API source")
	}
	return false
}

// AllowCompletion notes that a pod ended by itself: SyncPod found it terminal. What is
// left of it may be cleaned up.
func (g *Guard) AllowCompletion(uid types.UID) {
	var after effects
	g.mu.Lock()
	if r := g.records[uid]; r != nil {
		after = g.exemptLocked(r, completed, "the pod ended by itself")
	}
	g.mu.Unlock()
	g.apply(after)
}

// AllowStop notes that the pod's author declared the stop of one container: a failed
// probe, a restart rule, a resize, a changed image.
func (g *Guard) AllowStop(pod *v1.Pod, containerID string) {
	if pod == nil || !g.Protects(pod) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stops[containerID] = g.clock.Now()
}

// AllowRestart notes that the containers and the sandbox of a pod may be stopped until a
// new sandbox is made: nothing in it is to be kept.
func (g *Guard) AllowRestart(pod *v1.Pod) {
	r := g.recordOf(pod)
	if r == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r.exemption.restart = true
}

// FilterStoppable returns the pods that may be stopped for the cause, in the same order, and
// records a refusal for each of the others.
func (g *Guard) FilterStoppable(pods []*v1.Pod, cause Cause, detail string) []*v1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(pod *v1.Pod) bool { return g.Refuse(pod, cause, detail) })
}

// FilterUnprotected returns the pods that would not be refused for the cause. It records
// nothing: it is for the choice among candidates.
func (g *Guard) FilterUnprotected(pods []*v1.Pod, cause Cause) []*v1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(pod *v1.Pod) bool {
		r := g.recordOf(pod)
		if r == nil {
			return false
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return Decide(g.factsLocked(r, cause)) == Refused
	})
}

// Run does the housekeeping until the context ends: evidence that arrives on the node,
// holds whose attempts have stopped, records of pods that are gone, events that the API
// has not accepted yet. sync makes the kubelet sync a pod soon, or terminate a released
// one; it is called from this goroutine only. Run returns when all of its goroutines
// have ended.
func (g *Guard) Run(ctx context.Context, sync func(uid types.UID, released bool)) {
	written, lookedUp, recorded := make(chan struct{}), make(chan struct{}), make(chan types.UID)
	defer func() { <-written; <-lookedUp }()
	go func() {
		defer close(written)
		g.writeEvents(ctx)
	}()
	go func() {
		defer close(lookedUp)
		g.runLookups(ctx, recorded)
	}()
	ticker := g.clock.NewTicker(tidyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case uid := <-g.syncs:
			sync(uid, false)
		case <-g.saver.news:
			for _, uid := range g.takeReleased() {
				sync(uid, true)
			}
		case uid := <-recorded:
			sync(uid, true)
		case <-ticker.C():
			g.readReleasesSoon()
			for _, uid := range g.takeEnding() {
				sync(uid, true)
			}
			g.tidy()
			g.retryLimits()
			g.reportUnconfirmed()
		}
	}
}

// takeEnding returns the pods that were restored only to be terminated.
func (g *Guard) takeEnding() []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	ending := g.ending
	g.ending = nil
	return ending
}

// tidy ends holds whose reason is over and forgets pods of which nothing is left.
func (g *Guard) tidy() {
	now := g.clock.Now()
	var after effects
	var gone []*podRecord
	g.reportHang()
	g.mu.Lock()
	g.tidyStateLocked()
	for _, r := range g.records {
		for cause, h := range r.holds {
			if !cause.lasting() && now.Sub(h.last) > holdLinger {
				after = append(after, g.releaseLocked(r, cause, "the kubelet has stopped trying")...)
			}
		}
		for cause, h := range r.audited {
			if !cause.lasting() && now.Sub(h.last) > holdLinger {
				delete(r.audited, cause)
			}
		}
		if !r.present {
			if r.goneSince.IsZero() {
				r.goneSince = now
			}
			if now.Sub(r.goneSince) > goneLinger {
				gone = append(gone, r)
			}
		}
	}
	for id, at := range g.stops {
		if now.Sub(at) > time.Hour {
			delete(g.stops, id)
		}
	}
	for uid, at := range g.unprotected {
		if now.Sub(at) > unprotectedLinger {
			delete(g.unprotected, uid)
		}
	}
	maps.DeleteFunc(g.dead, func(_ types.UID, until time.Time) bool { return !now.Before(until) })
	g.tidyWaitingLocked(now)
	g.countVanishedLocked()
	g.mu.Unlock()
	g.apply(after)
	g.wake()
	for _, r := range gone {
		if g.alive(r, false) {
			continue
		}
		var after effects
		g.mu.Lock()
		// A held pod that the kubelet manages ends through AllowCompletion: its
		// sandbox may be missing just because it is being replaced.
		managed := r.pod != nil && len(r.holds) > 0
		over := !r.present && !managed
		if over {
			after = g.releaseAllLocked(r, "nothing of the pod runs any more")
			delete(g.records, r.uid)
			g.dead[r.uid] = now.Add(deadLinger)
		}
		g.mu.Unlock()
		if over {
			g.forget(r)
		}
		g.apply(after)
	}
}
