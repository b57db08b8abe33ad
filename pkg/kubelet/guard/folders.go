package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A user who can write to the state directory can end protected pods by a release file,
// and make the kubelet run a forged pod. So its folders are used only while no one but
// the kubelet's own user, in production root, can write to them. That is checked each
// time, because it can change while the kubelet runs.

// folderError is about a folder of the state directory that cannot be used. Its message
// has the remedy.
type folderError struct {
	path string
	err  error
}

func (e *folderError) Error() string {
	return fmt.Sprintf("the folder %s of the state directory is not used: %v", e.path, e.err)
}

func (e *folderError) Unwrap() error { return e.err }

// errNotOurs is wrapped by the errors about folders and files that another user could
// have written.
var errNotOurs = errors.New("another user could write there")

// checkFolder reports why the folder is not one that only the user can write to.
func checkFolder(path string, user int) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	uid, _ := ownerOf(info)
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		return fmt.Errorf("%w: it is a symbolic link; put a folder in its place", errNotOurs)
	case !info.IsDir():
		return errors.New("it is not a folder; remove it")
	case uid != user:
		return fmt.Errorf("%w: its owner is the user %d and not the kubelet's, %d; inspect its content, then: chown %d %s", errNotOurs, uid, user, user, path)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: its mode is %#o; inspect its content, then: chmod go-w %s", errNotOurs, info.Mode().Perm(), path)
	}
	return nil
}

// checkParents reports why another user could replace the folder at the path. Symbolic
// links on the way are followed.
func checkParents(path string, user int) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for _, end := range []string{path, target} {
		for dir := filepath.Dir(end); ; dir = filepath.Dir(dir) {
			info, err := os.Stat(dir)
			if err != nil {
				return err
			}
			switch uid, _ := ownerOf(info); {
			case uid != user && uid != 0:
				return fmt.Errorf("%w: the owner of %s above it is the user %d; chown root %s", errNotOurs, dir, uid, dir)
			case info.Mode().Perm()&0o002 != 0 && info.Mode()&os.ModeSticky == 0:
				return fmt.Errorf("%w: the mode of %s above it is %#o; chmod o-w %s", errNotOurs, dir, info.Mode().Perm(), dir)
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return nil
}

// checkFile reports why the file may not be the user's own. oneName: another user could
// have put it there by a hard link.
func checkFile(info os.FileInfo, user int, oneName bool) error {
	uid, names := ownerOf(info)
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: it is not a regular file", errNotOurs)
	case uid != user:
		return fmt.Errorf("%w: its owner is the user %d and not the kubelet's, %d", errNotOurs, uid, user)
	case oneName && names != 1:
		return fmt.Errorf("%w: it has %d names (hard links)", errNotOurs, names)
	}
	return nil
}
