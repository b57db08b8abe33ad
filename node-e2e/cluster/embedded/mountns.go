package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nodeFolders are the folders that a node has at fixed places and that two nodes
// on one machine must not share. Only some of them can be moved by
// configuration: the device plugin socket, the shim sockets and the links to
// container logs cannot. Inside the node's mount namespace each is a folder of
// the cluster.
var nodeFolders = []string{
	"/run/containerd",
	"/var/lib/cni",
	"/var/lib/containerd",
	"/var/lib/kubelet",
	"/var/log/containers",
	"/var/log/pods",
}

// nodeSettings are the kernel settings that a kubelet writes when they differ
// from what it wants. They belong to the machine, not to the node, so the node
// is shown files that already say what it wants.
var nodeSettings = map[string]string{
	"/proc/sys/kernel/keys/root_maxbytes": "25000000",
	"/proc/sys/kernel/keys/root_maxkeys":  "1000000",
	"/proc/sys/kernel/panic":              "10",
	"/proc/sys/kernel/panic_on_oops":      "1",
	"/proc/sys/vm/overcommit_memory":      "1",
	"/proc/sys/vm/panic_on_oom":           "0",
}

// mountNamespace is the namespace in which the node's mounts are. A pause
// process holds it, whatever else is stopped.
type mountNamespace struct {
	holder *process
}

// hostPath is where a folder or file of the node is outside the namespace.
func hostPath(clusterDir, nodePath string) string {
	clean := filepath.Clean(nodePath)
	for _, folder := range nodeFolders {
		if clean == folder || strings.HasPrefix(clean, folder+"/") {
			return filepath.Join(clusterDir, "node", clean)
		}
	}
	return clean
}

// newMountNamespace makes the namespace and starts its holder.
func newMountNamespace(clusterDir string, holder launch) (*mountNamespace, error) {
	for _, folder := range nodeFolders {
		if err := os.MkdirAll(hostPath(clusterDir, folder), 0o755); err != nil {
			return nil, err
		}
		// The mount point. It stays: another cluster's mount may be on it.
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	m := &mountNamespace{}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("making the node's mount namespace: %w", err)
		}
		// Slave first, so that nothing mounted here reaches the machine; then
		// shared, because volumes and the runtime pass mounts to containers.
		for _, propagation := range []uintptr{unix.MS_SLAVE, unix.MS_SHARED} {
			if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
				return fmt.Errorf("changing the propagation of the node's mounts: %w", err)
			}
		}
		for _, folder := range nodeFolders {
			if err := unix.Mount(hostPath(clusterDir, folder), folder, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mounting %s of the node: %w", folder, err)
			}
		}
		if err := showSettings(clusterDir); err != nil {
			return err
		}
		var err error
		m.holder, err = holder.start(clusterDir)
		return err
	})
	return m, err
}

func showSettings(clusterDir string) error {
	for name, value := range nodeSettings {
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
			continue
		}
		file := filepath.Join(clusterDir, "node", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("showing the node its own %s: %w", name, err)
		}
	}
	return nil
}

// do calls f on a thread that is in the namespace. Processes that f starts are
// in it too.
func (m *mountNamespace) do(f func() error) error {
	return onOwnThread(func() error {
		ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(m.holder.PID), "ns/mnt"))
		if err != nil {
			return fmt.Errorf("entering the node's mount namespace: %w", err)
		}
		defer ns.Close()
		if !m.holder.running() {
			return errors.New("the process that holds the node's mount namespace has ended: the cluster was stopped or lost it")
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("entering the node's mount namespace: %w", err)
		}
		return f()
	})
}

// onOwnThread calls f on a thread that ends afterwards, so that no other
// goroutine ever runs in what f made of it.
func onOwnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// Not the program's first thread: that one never ends, and it is the one
			// that /proc/self and other programs see. Held here, it is not chosen
			// again.
			err := onOwnThread(f)
			runtime.UnlockOSThread()
			result <- err
			return
		}
		// The thread's root and working directory are shared with the others
		// until now, and the kernel changes mount namespaces only of threads
		// that have their own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- fmt.Errorf("preparing a thread for another mount namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}
