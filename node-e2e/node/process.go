package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Process identifies a process for as long as the machine runs: a pid alone can
// be given to another process, a pid with its start time cannot.
type Process struct {
	PID int
	// StartTime is field 22 of /proc/<pid>/stat, in clock ticks since boot.
	StartTime uint64
}

// FindProcess returns the identity of the process that has the pid now.
func FindProcess(pid int) (Process, error) {
	_, start, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, StartTime: start}, nil
}

// Alive reports whether exactly this process still runs. A zombie does not run.
func (p Process) Alive() (bool, error) {
	state, start, err := readStat(p.PID)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return false, nil
	case err != nil:
		return false, err
	}
	return start == p.StartTime && state != 'Z' && state != 'X', nil
}

// String implements fmt.Stringer.
func (p Process) String() string {
	return fmt.Sprintf("pid %d started at tick %d", p.PID, p.StartTime)
}

func readStat(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(string(data))
}

// parseStat reads the state (field 3) and the start time (field 22) of a stat
// line. Field 2, the command, may contain blanks and brackets, so counting starts
// after its last bracket.
func parseStat(line string) (state byte, start uint64, err error) {
	const stateField, startField = 3, 22
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("stat line %q holds no command", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) <= startField-stateField {
		return 0, 0, fmt.Errorf("stat line %q has no start time", line)
	}
	start, err = strconv.ParseUint(fields[startField-stateField], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("start time of stat line %q: %w", line, err)
	}
	return fields[0][0], start, nil
}
