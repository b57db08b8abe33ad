package embedded

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// How long a part may take to end after SIGTERM. The API server closes its port
// within milliseconds, but then waits for its clients to give up connections
// that they have no reason to give up; killing it is what closes those.
const (
	termPatience          = 10 * time.Second
	apiServerTermPatience = time.Second
)

// Component is a part of the cluster that can be stopped and started: one
// process with one log.
type Component struct {
	cluster *Cluster
	name    string
	// inNode says that the process runs in the node's mount namespace.
	inNode bool
	// prepare writes what the process reads and returns how to start it.
	prepare func() (launch, error)
	// healthy is one attempt.
	healthy func(context.Context) error
	// patience is how long Stop waits before it kills.
	patience time.Duration
	// afterStart runs at the end of a Start; nil does nothing.
	afterStart func(context.Context) error

	mu      sync.Mutex
	current *process
}

// Stop ends the process with SIGTERM, waits for it, and kills it after ten seconds (the
// API server after one). A process that does not run is not an error.
func (p *Component) Stop(ctx context.Context) error {
	return p.end(ctx, unix.SIGTERM, time.After(p.patience))
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Component) Kill(ctx context.Context) error { return p.end(ctx, unix.SIGKILL, nil) }

func (p *Component) end(ctx context.Context, signal unix.Signal, kill <-chan time.Time) error {
	running := p.process()
	if running == nil {
		return nil
	}
	if err := running.Signal(signal); err != nil {
		return err
	}
	select {
	case <-running.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ending %s: %w", p.name, context.Cause(ctx))
	case <-kill:
		return p.Kill(ctx)
	}
}

// Start starts the process and returns when it is healthy. If it exits before,
// the error is a *testnode.ExitError. With the API server the controllers and the scheduler
// start again, as far as they run.
func (p *Component) Start(ctx context.Context) error {
	return p.startWith(ctx, p.prepare)
}

// Restart is Stop and Start.
func (p *Component) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return p.Start(ctx)
}

// WaitHealthy waits until the running process reports to be healthy.
func (p *Component) WaitHealthy(ctx context.Context) error {
	running := p.process()
	if running == nil {
		return fmt.Errorf("%s does not run", p.name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	exited := errors.New("it exited")
	go func() {
		select {
		case <-running.done:
			cancel(exited)
		case <-ctx.Done():
		}
	}()
	err := await(ctx, p.name+" to be healthy", p.healthy)
	// Without an error, something else responded on its port.
	if errors.Is(context.Cause(ctx), exited) || err == nil && !running.running() {
		return &testnode.ExitError{Name: p.name, Code: running.code, Output: logTail(p.LogPath(), running.logOffset, 25)}
	}
	return err
}

// LogPath returns the file that the process writes its log to. Starts append.
func (p *Component) LogPath() string {
	return filepath.Join(p.cluster.LogDir(), p.name+".log")
}

// PID returns the process id, or 0 if the process does not run.
func (p *Component) PID() int {
	if running := p.process(); running != nil {
		return running.PID
	}
	return 0
}

// process returns the process if it runs.
func (p *Component) process() *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil || !p.current.running() {
		return nil
	}
	return p.current
}

func (p *Component) startWith(ctx context.Context, prepare func() (launch, error)) error {
	if err := p.spawn(prepare); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	if err := p.WaitHealthy(ctx); err != nil || p.afterStart == nil {
		return err
	}
	return p.afterStart(ctx)
}

// spawn starts the process and records it.
func (p *Component) spawn(prepare func() (launch, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil && p.current.running() {
		return fmt.Errorf("it already runs, with process id %d", p.current.PID)
	}
	l, err := prepare()
	if err != nil {
		return err
	}
	l.log = p.LogPath()
	// The kubelet and containerd find runc, the shim and the plugins here, not
	// in what the machine may have installed.
	l.env = append(l.env, "PATH="+p.cluster.config.NodeDir+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	spawn := func() (err error) {
		p.current, err = l.start(p.cluster.config.Dir)
		return err
	}
	if p.inNode {
		err = p.cluster.mounts.do(spawn)
	} else {
		err = spawn()
	}
	if err != nil {
		return err
	}
	return p.cluster.record(p.name, p.current.Process)
}
