package guard

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// savedHeader starts the first line of a saved pod. The number is the version of
// the format; the SHA-256 of all that follows the line ends it.
const (
	savedHeader  = "kubelet-guard saved pod v"
	savedVersion = 1
	savedSuffix  = ".pod"
)

// savedPod is the content of one file of the state directory.
type savedPod struct {
	// Pod is the whole object as it came from the API.
	Pod *v1.Pod `json:"pod"`
	// Volumes behind the pod's claims.
	Volumes []ClaimedVolume `json:"volumes,omitempty"`
	// Evidence for the pod. It is here because it has to survive the kubelet even when
	// the object does not.
	Evidence *Evidence `json:"evidence,omitempty"`
	// SavedAt is for human readers.
	SavedAt time.Time `json:"savedAt"`
}

// store keeps one file per protected pod in the folder pods of the state
// directory. It is not safe for concurrent use: once the kubelet runs, only the
// goroutine of saver.go uses it.
type store struct {
	stateDir, dir, releases string
	// user has to own everything here.
	user int
	// sync is (*os.File).Sync; tests count with it and let it hang.
	sync func(*os.File) error
}

// openStore makes the folders of the state directory, as far as they can be made. The
// store can be used even when there is an error: it joins one for each folder.
func openStore(stateDir string) (*store, error) {
	s := newStore(stateDir)
	if err := s.checkTop(true); err != nil {
		return s, err
	}
	return s, errors.Join(s.checkInner(s.dir, true), s.checkInner(s.releases, true))
}

func newStore(stateDir string) *store {
	return &store{
		stateDir: stateDir, dir: filepath.Join(stateDir, "pods"), releases: releaseDir(stateDir),
		user: os.Geteuid(), sync: (*os.File).Sync,
	}
}

// checkTop returns a folderError unless the state directory itself may be used.
func (s *store) checkTop(create bool) error {
	var err error
	if create {
		err = os.MkdirAll(s.stateDir, 0o700)
	}
	target := ""
	if err == nil {
		target, err = filepath.EvalSymlinks(s.stateDir)
	}
	if err == nil {
		err = checkFolder(target, s.user)
	}
	if err == nil {
		err = checkParents(s.stateDir, s.user)
	}
	if err != nil {
		return &folderError{s.stateDir, err}
	}
	return nil
}

// checkInner returns a folderError unless the folder in the state directory may be
// used.
func (s *store) checkInner(dir string, create bool) error {
	err := checkFolder(dir, s.user)
	if create && errors.Is(err, os.ErrNotExist) {
		err = os.Mkdir(dir, 0o700)
	}
	if err == nil && dir == s.dir {
		// The folder was made by hand. The environment of pods is confidential.
		var info os.FileInfo
		if info, err = os.Lstat(dir); err == nil && info.Mode().Perm()&0o077 != 0 {
			err = os.Chmod(dir, 0o700)
		}
	}
	if err != nil {
		return &folderError{dir, err}
	}
	return nil
}

// check returns a folderError unless one of the two folders may be used.
func (s *store) check(dir string, create bool) error {
	if err := s.checkTop(create); err != nil {
		return err
	}
	return s.checkInner(dir, create)
}

// releaseDir is where an administrator of the node puts release files.
func releaseDir(stateDir string) string { return filepath.Join(stateDir, "release") }

func (s *store) path(uid types.UID) string { return filepath.Join(s.dir, string(uid)+savedSuffix) }

// save writes the file so that a crash at any moment leaves the old content or
// the new one: written next to it, synced, renamed, and the folder synced.
func (s *store) save(saved savedPod) error {
	payload, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(payload)
	content := fmt.Appendf(nil, "%s%d sha256:%s\n", savedHeader, savedVersion, hex.EncodeToString(sum[:]))
	content = append(append(content, payload...), '\n')

	// It may have been impossible to make the folder when the kubelet started.
	if err := s.check(s.dir, true); err != nil {
		return err
	}
	path := s.path(saved.Pod.UID)
	temporary := path + ".new"
	if err := s.writeSynced(temporary, content); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	return s.syncDir(s.dir)
}

// remove deletes the file of a pod and its release file. Files that are not there are
// no error.
func (s *store) remove(uid types.UID) error {
	var errs []error
	for folder, path := range map[string]string{s.dir: s.path(uid), s.releases: filepath.Join(s.releases, string(uid))} {
		err := s.check(folder, false)
		if err == nil {
			err = removeIfThere(path)
		}
		if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// load reads all files. One that cannot be used is reported with its name and kept; it
// never hides the others.
//
// A file of another user is never used: the kubelet would run a forged pod. When another
// user can write to the folder, the kubelet's own files still protect their pods. But a
// newer one may have been replaced by an older one, so their evidence does not count.
func (s *store) load() (pods []savedPod, bad []error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, []error{&folderError{s.dir, err}}
	}
	ours := s.check(s.dir, false) == nil
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), savedSuffix)
		if !ok {
			// What a crash left of an unfinished write.
			if ours && strings.HasSuffix(entry.Name(), savedSuffix+".new") {
				_ = os.Remove(filepath.Join(s.dir, entry.Name()))
			}
			continue
		}
		path := filepath.Join(s.dir, entry.Name())
		saved, err := s.readSaved(path, ours)
		if err == nil && string(saved.Pod.UID) != name {
			err = fmt.Errorf("holds pod UID %q", saved.Pod.UID)
		}
		if err != nil {
			bad = append(bad, &unusableError{uid: types.UID(name), path: path, err: err})
			continue
		}
		if !ours {
			saved.Evidence = nil
		}
		pods = append(pods, saved)
	}
	return pods, bad
}

// unusableError is about one file that cannot be used.
type unusableError struct {
	uid  types.UID
	path string
	err  error
}

func (e *unusableError) Error() string {
	return fmt.Sprintf("saved pod %s cannot be used: %v", e.path, e.err)
}

func (e *unusableError) Unwrap() error { return e.err }

func (s *store) readSaved(path string, ours bool) (savedPod, error) {
	content, err := s.readOwn(path, ours)
	if err != nil {
		return savedPod{}, err
	}
	line, payload, _ := bytes.Cut(content, []byte("\n"))
	payload = bytes.TrimSuffix(payload, []byte("\n"))
	var version int
	var sum string
	if _, err := fmt.Sscanf(string(line), savedHeader+"%d sha256:%s", &version, &sum); err != nil {
		return savedPod{}, errors.New("its first line is not that of a saved pod")
	}
	if version != savedVersion {
		return savedPod{}, fmt.Errorf("its format is v%d and this kubelet reads v%d", version, savedVersion)
	}
	if got := sha256.Sum256(payload); hex.EncodeToString(got[:]) != sum {
		return savedPod{}, errors.New("its content does not match its checksum")
	}
	var saved savedPod
	if err := json.Unmarshal(payload, &saved); err != nil {
		return savedPod{}, err
	}
	if saved.Pod == nil {
		return savedPod{}, errors.New("it holds no pod")
	}
	return saved, nil
}

// readOwn reads a file that only the user can have written. In a folder of the user's own
// a file may have more names: a backup may have been made with hard links.
func (s *store) readOwn(path string, ours bool) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|openOwn, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkFile(info, s.user, !ours); err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%w: its mode is %#o", errNotOurs, info.Mode().Perm())
	}
	return io.ReadAll(file)
}

// readReleases returns the names of the release files: regular files of the user's own,
// under one name. bad has why the others do not count, by name.
func (s *store) readReleases() (names []string, bad map[string]error, err error) {
	if err := s.check(s.releases, false); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	entries, err := os.ReadDir(s.releases)
	if err != nil {
		return nil, nil, &folderError{s.releases, err}
	}
	bad = map[string]error{}
	for _, entry := range entries {
		info, err := os.Lstat(filepath.Join(s.releases, entry.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = checkFile(info, s.user, true)
		}
		if err != nil {
			bad[entry.Name()] = fmt.Errorf("the release file %q does not count: %w", filepath.Join(s.releases, entry.Name()), err)
			continue
		}
		names = append(names, entry.Name())
	}
	return names, bad, nil
}

func (s *store) writeSynced(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|openOwn, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = s.sync(file)
	}
	return errors.Join(err, file.Close())
}

func (s *store) syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(s.sync(dir), dir.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
