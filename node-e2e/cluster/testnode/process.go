package testnode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/prometheus/procfs"
)

// Process identifies a process for as long as the machine runs: a pid alone can
// be given to another process, a pid with its start time cannot.
type Process struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/<pid>/stat, in clock ticks since boot.
	StartTime uint64 `json:"startTime"`
}

// FindProcess returns the identity of the process that has the pid now. The error for none
// wraps fs.ErrNotExist or syscall.ESRCH.
func FindProcess(pid int) (Process, error) {
	stat, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, StartTime: stat.Starttime}, nil
}

// Alive reports whether exactly this process still runs. A zombie does not run.
func (p Process) Alive() (bool, error) {
	stat, err := readStat(p.PID)
	if Ended(err) {
		return false, nil
	}
	return err == nil && stat.Starttime == p.StartTime && stat.State != "Z" && stat.State != "X", err
}

// Signal sends a signal to this very process; one that has ended is no error.
func (p Process) Signal(signal syscall.Signal) error {
	return SignalIf(p.PID, signal, func() bool {
		found, err := FindProcess(p.PID)
		return err == nil && found == p
	})
}

// String implements fmt.Stringer.
func (p Process) String() string {
	return fmt.Sprintf("pid %d started at tick %d", p.PID, p.StartTime)
}

// SignalIf sends a signal to a process for which the condition holds while a handle keeps
// its pid from being reused. One that has ended is no error.
func SignalIf(pid int, signal syscall.Signal, condition func() bool) error {
	process, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("opening process %d: %w", pid, err)
	}
	defer process.Release()
	if !condition() {
		return nil
	}
	if err := process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %s to process %d: %w", signal, pid, err)
	}
	return nil
}

// Ended reports whether an error of reading /proc says that the process has ended.
func Ended(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

func readStat(pid int) (procfs.ProcStat, error) {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStat{}, err
	}
	return process.Stat()
}
