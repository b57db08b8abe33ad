package guard

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
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
	Volumes []savedVolume `json:"volumes,omitempty"`
	// Evidence that came in for the pod. It is here because it has to survive the
	// kubelet even when the object does not.
	Evidence *Evidence `json:"evidence,omitempty"`
	// SavedAt is for people.
	SavedAt time.Time `json:"savedAt"`
}

// store keeps one file per protected pod in the folder pods of the state
// directory. It is not safe for concurrent use on the same UID; the Guard
// serializes its calls.
type store struct {
	dir string
}

// openStore makes the folders of the state directory.
func openStore(stateDir string) (*store, error) {
	s := &store{dir: filepath.Join(stateDir, "pods")}
	for _, dir := range []string{s.dir, releaseDir(stateDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return s, err
		}
	}
	return s, nil
}

// releaseDir is where an administrator of the node puts release files.
func releaseDir(stateDir string) string { return filepath.Join(stateDir, "release") }

func (s *store) path(uid types.UID) string { return filepath.Join(s.dir, string(uid)+savedSuffix) }

// save writes the file so that a crash at any moment leaves the old content or
// the new one: beside it, synced, renamed, and the folder synced.
func (s *store) save(saved savedPod) error {
	payload, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(payload)
	content := fmt.Appendf(nil, "%s%d sha256:%s\n", savedHeader, savedVersion, hex.EncodeToString(sum[:]))
	content = append(append(content, payload...), '\n')

	// It may have been impossible to make the folder when the kubelet started.
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	path := s.path(saved.Pod.UID)
	temporary := path + ".new"
	if err := writeSynced(temporary, content); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	return syncDir(s.dir)
}

// remove deletes the file of a pod. A file that is not there is no error.
func (s *store) remove(uid types.UID) error { return removeIfThere(s.path(uid)) }

// load reads all files. One that cannot be used is reported with its name and
// left alone; it never hides the others.
func (s *store) load() (pods []savedPod, bad []error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, []error{fmt.Errorf("read the folder of saved pods: %w", err)}
	}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), savedSuffix)
		if !ok {
			// What a crash left of an unfinished write.
			if strings.HasSuffix(entry.Name(), savedSuffix+".new") {
				_ = os.Remove(filepath.Join(s.dir, entry.Name()))
			}
			continue
		}
		path := filepath.Join(s.dir, entry.Name())
		saved, err := readSaved(path)
		if err == nil && string(saved.Pod.UID) != name {
			err = fmt.Errorf("holds pod UID %q", saved.Pod.UID)
		}
		if err != nil {
			bad = append(bad, &unusableError{uid: types.UID(name), path: path, err: err})
			continue
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

func readSaved(path string) (savedPod, error) {
	content, err := os.ReadFile(path)
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

func writeSynced(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
