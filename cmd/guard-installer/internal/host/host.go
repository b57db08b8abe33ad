// Package host writes and reads files of the node. Every path is one of the node; the
// root of the node may be elsewhere, as in a container.
//
// A file is written next to its place, synced, renamed and its folder synced: a process that
// reads it, now or after a power failure, sees the old file or the new one.
package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Step, when it is not nil, is called before every operation that changes a file of a
// node. Its error is that of the operation. Tests stop a program there, or fill a disk.
// It must be set before the first operation.
var Step func(root Root, operation Operation, name string) error

// Operation changes a file of a node.
type Operation string

const (
	// Write, MakeFolder and MakeLink need room on the disk.
	Write      Operation = "write"
	MakeFolder Operation = "make folder"
	MakeLink   Operation = "make link"
	// Rename, Remove and TakeLock need none.
	Rename   Operation = "rename"
	Remove   Operation = "remove"
	TakeLock Operation = "take lock"
)

func (r Root) step(operation Operation, name string) error {
	if Step == nil {
		return nil
	}
	return Step(r, operation, name)
}

// Root is the root of the node, such as /host, or / on the node itself. Symbolic links
// in paths of the node are followed within it.
type Root string

// Path returns where the file of the node is. Links are followed as the node would
// follow them: /usr/bin/kubelet may be a link to an absolute path. It never leads out
// of the root.
func (r Root) Path(name string) string {
	resolved, rest := "/", strings.Split(filepath.Clean("/"+name), "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			resolved = filepath.Dir(resolved)
			continue
		}
		next := filepath.Join(resolved, part)
		target, err := os.Readlink(filepath.Join(string(r), next))
		if err != nil || links >= 40 {
			resolved = next
			continue
		}
		links++
		if filepath.IsAbs(target) {
			resolved = "/"
		}
		rest = append(strings.Split(filepath.Clean(target), "/"), rest...)
	}
	return filepath.Join(string(r), resolved)
}

// Read returns the content of a file.
func (r Root) Read(name string) ([]byte, error) { return os.ReadFile(r.Path(name)) }

// Exists reports whether there is a file.
func (r Root) Exists(name string) bool {
	_, err := os.Stat(r.Path(name))
	return err == nil
}

// Write replaces a file, and makes the folders that it needs.
func (r Root) Write(name string, data []byte, mode fs.FileMode) error {
	return r.replace(name, mode, func(file *os.File) error {
		_, err := file.Write(data)
		return err
	})
}

// unfinished starts the name of a file that is not complete yet.
const unfinished = ".guard-installer-"

// RemoveUnfinished removes what a process has left in the folder that was killed while it
// wrote a file there.
func (r Root) RemoveUnfinished(folder string) error {
	names, err := r.Folder(folder)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, unfinished) {
			if err := r.Remove(filepath.Join(folder, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r Root) replace(name string, mode fs.FileMode, fill func(*os.File) error) (err error) {
	dir := r.Path(filepath.Dir(name))
	if err := r.makeFolders(dir); err != nil {
		return fmt.Errorf("make the folder of %s: %w", name, err)
	}
	if err := r.step(Write, name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	file, err := os.CreateTemp(dir, unfinished+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	if err := fill(file); err != nil {
		return err
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := r.step(Rename, name); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), filepath.Join(dir, filepath.Base(name))); err != nil {
		return err
	}
	return syncFolder(dir)
}

// Rename gives a file another name in the same folder, and replaces what has that name.
// It needs no room on the disk.
func (r Root) Rename(from, to string) error {
	dir := r.Path(filepath.Dir(to))
	err := r.step(Rename, to)
	if err == nil {
		err = os.Rename(filepath.Join(dir, filepath.Base(from)), filepath.Join(dir, filepath.Base(to)))
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return syncFolder(dir)
}

// ReadText returns the content of a file, and nil when there is none.
func (r Root) ReadText(name string) (*string, error) {
	data, err := r.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text := string(data)
	return &text, nil
}

// makeFolders is os.MkdirAll, but what it makes is on the disk when it returns.
func (r Root) makeFolders(dir string) error {
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if err := r.makeFolders(parent); err != nil {
		return err
	}
	if err := r.step(MakeFolder, strings.TrimPrefix(dir, string(r))); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// Remove removes a file, if it is there.
func (r Root) Remove(name string) error {
	path := filepath.Join(r.Path(filepath.Dir(name)), filepath.Base(name))
	err := r.step(Remove, name)
	if err == nil {
		err = os.Remove(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return syncFolder(filepath.Dir(path))
}

// RemoveAll removes a folder with everything in it, if it is there. A link is removed,
// and not what it leads to.
func (r Root) RemoveAll(name string) error {
	path := filepath.Join(r.Path(filepath.Dir(name)), filepath.Base(name))
	err := r.step(Remove, name)
	if err == nil {
		err = os.RemoveAll(path)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// RemoveEmpty removes a folder if nothing is in it.
func (r Root) RemoveEmpty(name string) error {
	err := r.step(Remove, name)
	if err == nil {
		err = unix.Rmdir(r.Path(name))
	}
	if err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Link makes a symbolic link, and leaves one that is there.
func (r Root) Link(target, name string) error {
	dir := r.Path(filepath.Dir(name))
	if err := r.makeFolders(dir); err != nil {
		return fmt.Errorf("make the folder of %s: %w", name, err)
	}
	err := r.step(MakeLink, name)
	if err == nil {
		err = os.Symlink(target, filepath.Join(dir, filepath.Base(name)))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return syncFolder(dir)
}

// Folder returns the names in a folder; none when it is not there.
func (r Root) Folder(name string) ([]string, error) {
	entries, err := os.ReadDir(r.Path(name))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names, nil
}

// Install puts a program with the given checksum in its place. A program that is there
// with the checksum stays, so that a program that runs is never written over.
// The copy is read back before it gets its name. like is a program of
// the node with the SELinux label that the copy gets.
func (r Root) Install(source, name, checksum, like string) error {
	if present, err := Checksum(r.Path(name)); err == nil && present == checksum {
		return nil
	}
	return r.replace(name, 0o755, func(file *os.File) error {
		from, err := os.Open(source)
		if err != nil {
			return err
		}
		defer from.Close()
		if _, err := io.Copy(file, from); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		got, err := Checksum(file.Name())
		if err != nil {
			return err
		}
		if got != checksum {
			return fmt.Errorf("the copy has the checksum %s, not %s: the disk or the image is damaged", got, checksum)
		}
		return copyLabel(r.Path(like), file.Name())
	})
}

const labelAttribute = "security.selinux"

// copyLabel gives a program the SELinux label of another: systemd starts a program in
// the domain that its label says, and /opt has none for kubelets.
func copyLabel(from, to string) error {
	label := make([]byte, 1024)
	n, err := unix.Getxattr(from, labelAttribute, label)
	if err != nil || n == 0 {
		return nil // no SELinux here
	}
	if err := unix.Setxattr(to, labelAttribute, label[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("set the SELinux label: %w", err)
	}
	return nil
}

// FileSystem is a file system of the node.
type FileSystem struct {
	// Device is another one for each file system.
	Device uint64
	// Free and Size are in bytes.
	Free, Size uint64
}

// FileSystem returns the file system in which the file is or will be.
func (r Root) FileSystem(name string) (FileSystem, error) {
	for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
		var stat unix.Statfs_t
		var node unix.Stat_t
		err := unix.Statfs(r.Path(dir), &stat)
		if err == nil {
			err = unix.Stat(r.Path(dir), &node)
		}
		if err == nil {
			return FileSystem{Device: uint64(node.Dev), Free: stat.Bavail * uint64(stat.Bsize), Size: stat.Blocks * uint64(stat.Bsize)}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return FileSystem{}, fmt.Errorf("free space of %s: %w", dir, err)
		}
	}
}

// Boot identifies a boot of the node: the boot of the kernel, and the start
// of its first process, which differ for a node that is a container.
func (r Root) Boot() (string, error) {
	id, err := os.ReadFile(filepath.Join(string(r), "/proc/sys/kernel/random/boot_id"))
	if err != nil {
		return "", fmt.Errorf("identify the boot of the node: %w", err)
	}
	stat, err := os.ReadFile(filepath.Join(string(r), "/proc/1/stat"))
	if err != nil {
		return "", fmt.Errorf("identify the boot of the node: %w", err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(after)
	if len(fields) < 20 {
		return "", fmt.Errorf("identify the boot of the node: /proc/1/stat has too few fields")
	}
	return strings.TrimSpace(string(id)) + "/" + fields[19], nil
}

// Uptime is the time since the boot, that in suspension included. No clock that is set
// changes it.
func Uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // there is no such kernel
	}
	return time.Duration(t.Nano())
}

// Process is what is known about a process of the node.
type Process struct {
	PID int
	// SHA256 of the program that it runs, which may be gone from its path.
	SHA256    string
	Arguments []string
}

// Process reads a process.
func (r Root) Process(pid int) (Process, error) {
	dir := filepath.Join(string(r), "proc", fmt.Sprint(pid))
	sum, err := Checksum(filepath.Join(dir, "exe"))
	if err != nil {
		return Process{}, fmt.Errorf("the program of process %d: %w", pid, err)
	}
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, fmt.Errorf("the arguments of process %d: %w", pid, err)
	}
	return Process{PID: pid, SHA256: sum, Arguments: strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")}, nil
}

// InControlGroup returns the names of the processes in a control group, as systemd calls
// it, and in the groups below it. A name has at most 15 characters. A process that ends
// meanwhile is not among them.
func (r Root) InControlGroup(group string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(string(r), "proc"))
	if err != nil {
		return nil, fmt.Errorf("list the processes of the node: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.Trim(entry.Name(), "0123456789") != "" {
			continue
		}
		dir := filepath.Join(string(r), "proc", entry.Name())
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || !inGroup(string(groups), group) {
			continue
		}
		if name, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names, nil
}

// inGroup reads the hierarchies that systemd uses: the unified one, or its own. Seen
// from a container the path of a group has others before it.
func inGroup(groups, group string) bool {
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && (fields[1] == "" || fields[1] == "name=systemd") && strings.Contains(fields[2]+"/", group+"/") {
			return true
		}
	}
	return false
}

// Flag returns the last value of a flag in the arguments, and whether it is there.
func (p Process) Flag(name string) (value string, ok bool) {
	for i, argument := range p.Arguments {
		if v, cut := strings.CutPrefix(argument, name+"="); cut {
			value, ok = v, true
		} else if argument == name {
			value, ok = "", true
			if i+1 < len(p.Arguments) {
				value = p.Arguments[i+1]
			}
		}
	}
	return value, ok
}

type fileKey struct {
	dev, ino  uint64
	size, sec int64
	nsec      int64
}

var checksums sync.Map // fileKey to string

// Checksum returns the SHA-256 checksum of a file, in lower case hexadecimal digits. It
// remembers checksums of files that have not changed. It is safe for concurrent use.
func Checksum(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return "", err
	}
	key := fileKey{uint64(stat.Dev), stat.Ino, stat.Size, int64(stat.Mtim.Sec), int64(stat.Mtim.Nsec)}
	if sum, ok := checksums.Load(key); ok {
		return sum.(string), nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	checksums.Store(key, sum)
	return sum, nil
}
