package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// markerEnv is set, with the cluster's folder as its value, in the environment
// of every process that a cluster starts, and inherited by what those start
// (the shims of containerd). It is how the clean-up distinguishes the
// cluster's processes from all others, with no window in which one is not yet recorded.
const markerEnv = "KUBELET_GUARD_NODE"

// process is a started process, a child of this program.
type process struct {
	testnode.Process
	// done is closed when the process has ended, and code is valid from then on.
	done chan struct{}
	code int
	// logOffset is where in the log file the output of this process starts.
	logOffset int64
}

// launch describes a process to start.
type launch struct {
	path string
	args []string
	env  []string
	log  string
}

// start starts the process in the calling thread's mount namespace. It gets a
// session of its own, so that a Ctrl-C in the terminal reaches only the program
// that uses this package, which then ends the components in sequence.
func (l launch) start(clusterDir string) (*process, error) {
	out, err := os.OpenFile(l.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	offset, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "== %s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), l.path, strings.Join(l.args, " "))

	cmd := exec.Command(l.path, l.args...)
	cmd.Dir = clusterDir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), markerEnv+"="+clusterDir)
	cmd.Env = append(cmd.Env, l.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	identity, err := testnode.FindProcess(cmd.Process.Pid)
	if err != nil {
		// It cannot be gone: until Wait, it is at least a zombie.
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	p := &process{
		Process:   identity,
		done:      make(chan struct{}),
		code:      -1,
		logOffset: offset,
	}
	go func() {
		// The error repeats what ProcessState says.
		_ = cmd.Wait()
		p.code = cmd.ProcessState.ExitCode()
		close(p.done)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// logTail returns the last lines of a file from an offset on.
func logTail(path string, offset int64, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const enough = 64 << 10
	if info, err := f.Stat(); err == nil {
		offset = max(offset, info.Size()-enough)
	}
	content, err := io.ReadAll(io.NewSectionReader(f, offset, enough))
	if err != nil {
		return err.Error()
	}
	return lastLines(string(content), lines)
}

func lastLines(text string, n int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

// await calls probe until it succeeds. The error says what was awaited, for how
// long, and what was seen last.
func await(ctx context.Context, what string, probe func(context.Context) error) error {
	// Short, because several of these waits are in a row on the way to a Ready
	// node, and cheap, because each probe is one local call.
	const interval = 50 * time.Millisecond
	start := time.Now()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := probe(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s, last seen: %w (%w)", time.Since(start).Round(time.Millisecond), what, err, context.Cause(ctx))
		case <-time.After(interval):
		}
	}
}
