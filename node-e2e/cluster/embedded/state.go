package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// Names of files in a cluster's folder. The lock is held, in the kernel, by the
// program that started the cluster for as long as it lives.
const (
	stateFile  = "state.json"
	lockFile   = "lock"
	logsFolder = "logs"
)

// state is what the clean-up and the list of clusters need to know about a cluster.
type state struct {
	Name    string    `json:"name"`
	Index   int       `json:"index"`
	Created time.Time `json:"created"`
	// BootID is the boot to which the processes belong.
	BootID  string `json:"bootID"`
	Kubelet string `json:"kubelet"`
	// Ready says that Start completed.
	Ready bool `json:"ready"`
	// Detached says that the cluster stays although the program that started it
	// has ended.
	Detached bool `json:"detached"`
	// Processes are those last started, by component.
	Processes map[string]testnode.Process `json:"processes"`
}

func readState(dir string) (*state, error) {
	content, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(content, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	return &s, nil
}

func (s *state) write(dir string) error {
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	if err := os.WriteFile(path+".new", append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// lockDir takes the lock of a cluster's folder. The kernel releases it when the
// file is closed or the program ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("the cluster in %s belongs to a program that still runs; stop it, or choose another name", dir)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// Summary describes a cluster that is running, or that a crashed program left.
type Summary struct {
	Name    string
	Dir     string
	Kubelet string
	Created time.Time
	// Running says that Start completed and that every part still runs.
	Running bool
	// Parts are the components that run.
	Parts []string
	// Kubeconfig is the administrator's.
	Kubeconfig string
}

// List returns the clusters below a folder such as _output/clusters, by name.
// A folder that does not exist has none.
func List(parent string) ([]Summary, error) {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	var clusters []Summary
	for _, entry := range entries {
		dir := filepath.Join(parent, entry.Name())
		s, err := readState(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // only logs
		}
		if err != nil {
			return nil, err
		}
		summary := Summary{
			Name: s.Name, Dir: dir, Kubelet: s.Kubelet, Created: s.Created,
			Kubeconfig: filepath.Join(dir, kubeconfigFile),
		}
		for name, id := range s.Processes {
			if alive, err := id.Alive(); s.BootID == boot && err == nil && alive {
				summary.Parts = append(summary.Parts, name)
			}
		}
		slices.Sort(summary.Parts)
		summary.Running = s.Ready && len(summary.Parts) == len(s.Processes)
		clusters = append(clusters, summary)
	}
	return clusters, nil
}
