package guard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// The disk under the state directory may be slow, or hang for good: a failing device, a
// frozen file system, a network mount. The kubelet's watch, its merge of sources, its
// hooks and the guard's own housekeeping must not notice. So they only queue the work,
// and one goroutine does it, the most urgent first. It exists while something is due:
// nothing has to be stopped with the Guard, and what is due later (lazy writes, retries)
// is started by tidy.

const (
	// saveTimeout is how long the start of a pod waits for its first file. A healthy disk
	// takes milliseconds, a busy one less than a second. Little is lost beyond that: the
	// pod is protected by the labels of its sandbox, and its file is written when the
	// disk responds.
	saveTimeout = 2 * time.Second
	// lazyDelay is how long a change that can wait is not written after it was seen: a
	// pod that starts changes its status several times. It is spread over twice that.
	lazyDelay = 10 * time.Second
	// lazyInterval is the least time between two such writes of a pod. Some databases
	// annotate their pods every few seconds.
	lazyInterval = time.Minute
	// writeRetry is how long after a failure a file is written again. It doubles up to
	// maxWriteRetry.
	writeRetry    = 5 * time.Second
	maxWriteRetry = time.Minute
	// hangReport is how long the disk does not respond before that is reported.
	hangReport = 10 * time.Second
)

// urgency orders what is to be written.
type urgency int

const (
	// lazily: annotations, finalizers, owners, the status.
	lazily urgency = iota
	// soon: spec, labels, volumes.
	soon
	// urgently: evidence, and the first file of a pod, whose start may wait for it.
	urgently
)

// podFile is the pending work on the file of one pod. Guarded by Guard.mu.
type podFile struct {
	// queued: the pod is in saver.dirty, to be written at due. A podRecord is dirty
	// before it is queued when an earlier kubelet's file lacks something.
	queued  bool
	urgency urgency
	due     time.Time
	// first is closed when the first attempt at the pod's first file is over; nil when
	// there is nothing to wait for.
	first chan struct{}
	// lazyAt is when the last lazy write was made.
	lazyAt time.Time
	// retry is the delay after the last failure; zero when the last attempt succeeded.
	retry time.Duration
	// forgotten: nothing of the pod is written any more.
	forgotten bool
}

// removal is the file of a pod that is to be removed.
type removal struct {
	due   time.Time
	retry time.Duration
}

// saver is the pending work in the state directory. Guarded by Guard.mu.
type saver struct {
	dirty    map[types.UID]*podRecord
	removals map[types.UID]*removal
	// reading: the release files are to be read.
	reading bool
	// idle is closed when the goroutine ends; nil without one.
	idle chan struct{}
	// busySince is when the goroutine started its present work, busyWith what that is;
	// hung: its duration has been reported.
	busySince time.Time
	busyWith  string
	hung      bool
	// complaints has the problem that was reported about a path and persists.
	complaints map[string]string

	// released has the pods that release files gave evidence to, for Run, which gets a
	// signal from news.
	released []types.UID
	news     chan struct{}
}

func newSaver() saver {
	return saver{
		dirty: map[types.UID]*podRecord{}, removals: map[types.UID]*removal{},
		complaints: map[string]string{}, news: make(chan struct{}, 1),
	}
}

// queueLocked has the pod's file written, lazily or not. What is written is what is
// known then.
func (g *Guard) queueLocked(r *podRecord, how urgency) {
	if g.store == nil || r.saved == nil || r.file.forgotten {
		return
	}
	f := &r.file
	due := g.clock.Now()
	if how == lazily {
		due = due.Add(jitter(lazyDelay))
		if next := f.lazyAt.Add(lazyInterval); due.Before(next) {
			due = next.Add(jitter(lazyDelay) - lazyDelay)
		}
	}
	if !f.queued || how > f.urgency {
		f.urgency = how
	}
	if !f.queued || due.Before(f.due) {
		f.due = due
	}
	r.dirty, f.queued = true, true
	g.saver.dirty[r.uid] = r
	g.wakeLocked()
}

// removeLocked has the files of a pod removed.
func (g *Guard) removeLocked(uid types.UID) {
	if g.store == nil {
		return
	}
	g.saver.removals[uid] = &removal{}
	g.wakeLocked()
}

// readReleasesSoon has the release files read. Run gets the result by saver.news.
func (g *Guard) readReleasesSoon() {
	if g.store == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.saver.reading = true
	g.wakeLocked()
}

// takeReleased returns the pods that release files gave evidence to since its last call.
func (g *Guard) takeReleased() []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	released := g.saver.released
	g.saver.released = nil
	return released
}

// wakeLocked starts the goroutine when something is due and there is none.
func (g *Guard) wakeLocked() {
	s := &g.saver
	if s.idle != nil || g.nextLocked() == nil {
		return
	}
	s.idle = make(chan struct{})
	go g.work(s.idle)
}

// work does all that is due.
func (g *Guard) work(idle chan struct{}) {
	defer close(idle)
	s := &g.saver
	for {
		g.mu.Lock()
		s.busySince, s.busyWith, s.hung = time.Time{}, "", false
		next := g.nextLocked()
		if next == nil {
			s.idle = nil
			g.mu.Unlock()
			return
		}
		do := next()
		s.busySince = g.clock.Now()
		g.mu.Unlock()
		do()
	}
}

// nextLocked returns what to do next, or nil when nothing is due. The returned function
// is called with the lock, and what it returns without.
func (g *Guard) nextLocked() func() func() {
	s := &g.saver
	now := g.clock.Now()
	var next *podRecord
	for _, r := range s.dirty {
		if r.file.due.After(now) || next != nil && (r.file.urgency < next.file.urgency || r.file.urgency == next.file.urgency && !r.file.due.Before(next.file.due)) {
			continue
		}
		next = r
	}
	if next != nil && next.file.urgency == urgently {
		return func() func() { return g.writeLocked(next) }
	}
	if s.reading {
		return func() func() {
			s.reading, s.busyWith = false, "read "+g.store.releases
			return func() {
				if released := g.readReleases(); len(released) > 0 {
					g.mu.Lock()
					s.released = append(s.released, released...)
					g.mu.Unlock()
					select {
					case s.news <- struct{}{}:
					default:
					}
				}
			}
		}
	}
	if next != nil && next.file.urgency == soon {
		return func() func() { return g.writeLocked(next) }
	}
	for uid, gone := range s.removals {
		if !gone.due.After(now) {
			return func() func() { return g.unlinkLocked(uid, gone) }
		}
	}
	if next != nil {
		return func() func() { return g.writeLocked(next) }
	}
	return nil
}

// writeLocked starts the write of a pod's file. A pending removal comes first: the file
// may be that of an earlier life of the pod, with a release file.
func (g *Guard) writeLocked(r *podRecord) func() {
	s := &g.saver
	if gone := s.removals[r.uid]; gone != nil {
		return g.unlinkLocked(r.uid, gone)
	}
	s.busyWith = "write " + g.store.path(r.uid)
	content := savedPod{Pod: r.saved, Volumes: r.volumes, Evidence: r.evidence, SavedAt: g.clock.Now().UTC()}
	delete(s.dirty, r.uid)
	r.dirty, r.file.queued = false, false
	if r.file.urgency == lazily {
		r.file.lazyAt = content.SavedAt
	}
	return func() {
		err := g.store.save(content)
		g.mu.Lock()
		f := &r.file
		failedBefore := f.retry != 0
		if err == nil {
			f.retry = 0
		} else {
			f.retry = min(max(2*f.retry, writeRetry), maxWriteRetry)
			// Meanwhile it may have been queued again, or forgotten.
			g.queueLocked(r, soon)
			f.due = g.clock.Now().Add(f.retry)
		}
		f.firstWrittenLocked()
		g.mu.Unlock()
		if err == nil {
			g.settled(g.stateDir, g.store.dir)
			return
		}
		g.stateTrouble(fmt.Errorf("save pod %s/%s to %s: %w", r.namespace, r.name, g.store.path(r.uid), err), failedBefore)
	}
}

// firstWrittenLocked lets a start of the pod that waits continue.
func (f *podFile) firstWrittenLocked() {
	if f.first != nil {
		close(f.first)
		f.first = nil
	}
}

// unlinkLocked starts the removal of a pod's files.
func (g *Guard) unlinkLocked(uid types.UID, gone *removal) func() {
	g.saver.busyWith = "remove " + g.store.path(uid)
	delete(g.saver.removals, uid)
	return func() {
		err := g.store.remove(uid)
		if err == nil {
			return
		}
		failedBefore := gone.retry != 0
		gone.retry = min(max(2*gone.retry, writeRetry), maxWriteRetry)
		gone.due = g.clock.Now().Add(gone.retry)
		g.mu.Lock()
		if g.saver.removals[uid] == nil {
			g.saver.removals[uid] = gone
		}
		g.mu.Unlock()
		g.stateTrouble(fmt.Errorf("remove the files of pod %s: %w", uid, err), failedBefore)
	}
}

// stateTrouble counts an error of the state directory, and reports it unless it is known:
// one of a folder once for all pods.
func (g *Guard) stateTrouble(err error, known bool) {
	var folder *folderError
	if errors.As(err, &folder) {
		err, known = folder, !g.complain(folder.path, folder.Error())
	}
	if known {
		g.metrics.errors.WithLabelValues(opStateDir).Inc()
		return
	}
	g.stateFailed(err)
}

// complain records a problem of a path, and reports whether it is new.
func (g *Guard) complain(path, complaint string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.saver.complaints[path] == complaint
	g.saver.complaints[path] = complaint
	return !known
}

// settled forgets the problems of paths that work again.
func (g *Guard) settled(paths ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, path := range paths {
		delete(g.saver.complaints, path)
	}
}

// reportHang reports a disk that does not respond.
func (g *Guard) reportHang() {
	g.mu.Lock()
	s := &g.saver
	since, with, known := s.busySince, s.busyWith, s.hung
	hangs := !since.IsZero() && g.clock.Since(since) > hangReport
	s.hung = hangs
	waiting := len(s.dirty)
	g.mu.Unlock()
	if hangs {
		g.stateTrouble(fmt.Errorf("the disk has not responded since %s: %s; the files of %d pods wait", since.UTC().Format(time.RFC3339), with, waiting), known)
	}
}

// tidyStateLocked starts what has become due.
func (g *Guard) tidyStateLocked() {
	for _, r := range g.records {
		if r.dirty && !r.file.queued {
			g.queueLocked(r, urgently)
		}
	}
	g.wakeLocked()
}

// awaitSaved returns when the first attempt at the pod's first file is over, at the
// latest after saveTimeout, and at once while the disk hangs.
func (g *Guard) awaitSaved(ctx context.Context, r *podRecord) {
	g.mu.Lock()
	first, wait := r.file.first, saveTimeout
	if since := g.saver.busySince; !since.IsZero() {
		wait -= g.clock.Since(since)
	}
	g.mu.Unlock()
	if first == nil {
		return
	}
	if wait > 0 {
		timer := g.clock.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-first:
			return
		case <-ctx.Done():
			return
		case <-timer.C():
		}
	}
	klog.InfoS("Starting a protected pod whose file is not saved yet", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid)
}
