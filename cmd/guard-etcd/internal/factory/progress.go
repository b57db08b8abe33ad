package factory

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// What takes longer than progressDelay shows its progress, every progressInterval.
const (
	progressDelay    = 2 * time.Second
	progressInterval = 5 * time.Second
)

// Progress is that of one step.
type Progress struct {
	count   atomic.Int64
	stop    chan struct{}
	stopped chan struct{}
}

// StartProgress starts a step. Stop must be called.
func StartProgress(out io.Writer, what string) *Progress {
	p := &Progress{stop: make(chan struct{}), stopped: make(chan struct{})}
	go p.show(out, what, time.Now())
	return p
}

// Set says how many objects of the step are done.
func (p *Progress) Set(count int) { p.count.Store(int64(count)) }

// Stop ends the step; nothing is printed after it.
func (p *Progress) Stop() {
	close(p.stop)
	<-p.stopped
}

func (p *Progress) show(out io.Writer, what string, start time.Time) {
	defer close(p.stopped)
	timer := time.NewTimer(progressDelay)
	defer timer.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-timer.C:
			timer.Reset(progressInterval)
		}
		elapsed := time.Since(start).Round(time.Second)
		if count := p.count.Load(); count > 0 {
			fmt.Fprintf(out, "%s: %d after %s\n", what, count, elapsed)
		} else {
			fmt.Fprintf(out, "%s: %s\n", what, elapsed)
		}
	}
}
