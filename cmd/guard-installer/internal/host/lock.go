package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another process has the lock.
var ErrLocked = errors.New("another process has the lock")

// Lock is a lock that other processes respect. It ends with the process, however that
// ends.
type Lock struct{ file *os.File }

// Lock takes the lock that the file is, and waits for it.
func (r Root) Lock(name string) (*Lock, error) { return r.lock(name, unix.LOCK_EX) }

// TryLock takes the lock that the file is. The error is ErrLocked when another process
// has it.
func (r Root) TryLock(name string) (*Lock, error) { return r.lock(name, unix.LOCK_EX|unix.LOCK_NB) }

func (r Root) lock(name string, how int) (*Lock, error) {
	path := r.Path(name)
	if err := r.makeFolders(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := r.step(TakeLock, name); err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	for {
		switch err := unix.Flock(int(file.Fd()), how); {
		case err == nil:
			return &Lock{file}, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			_ = file.Close()
			return nil, ErrLocked
		default:
			_ = file.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

// SetText replaces the content of the file of the lock.
func (l *Lock) SetText(text string) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(text), 0)
	return err
}

// Close releases the lock.
func (l *Lock) Close() error { return l.file.Close() }
