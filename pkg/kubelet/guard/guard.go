package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/version"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/utils/clock"
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
