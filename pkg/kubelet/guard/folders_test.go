//go:build unix

package guard

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// nobody is a user that is not the one of the test.
const nobody = 65534

// giveAway makes a file another user's. Only root can.
func giveAway(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	require.NoError(t, os.Chown(path, nobody, nobody))
}

func TestFoldersThatOthersCanWriteTo(t *testing.T) {
	const chmod, owner, link = "chmod", "chown", "symbolic link"
	for name, test := range map[string]struct {
		change func(t *testing.T, stateDir string)
		// loaded: the pod is read, evidence: with its evidence; released: a release file
		// counts; saved: pods are written.
		loaded, evidence, released, saved bool
		// says is in the event about it.
		says string
	}{
		"as they are made": {
			change: func(*testing.T, string) {},
			loaded: true, evidence: true, released: true, saved: true,
		},
		"readable by all": {
			change: func(t *testing.T, stateDir string) {
				for _, path := range []string{stateDir, filepath.Join(stateDir, "pods"), releaseDir(stateDir)} {
					require.NoError(t, os.Chmod(path, 0o755))
				}
			},
			loaded: true, evidence: true, released: true, saved: true,
		},
		"behind a symbolic link": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Rename(stateDir, stateDir+"-elsewhere"))
				require.NoError(t, os.Symlink(stateDir+"-elsewhere", stateDir))
			},
			loaded: true, evidence: true, released: true, saved: true,
		},
		"in a folder where nobody may rename what is another's": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Chmod(filepath.Dir(stateDir), 0o777|os.ModeSticky))
			},
			loaded: true, evidence: true, released: true, saved: true,
		},
		"in a folder of everybody": {
			change: func(t *testing.T, stateDir string) { require.NoError(t, os.Chmod(filepath.Dir(stateDir), 0o777)) },
			loaded: true, says: chmod,
		},
		"in a folder of another user": {
			change: func(t *testing.T, stateDir string) { giveAway(t, filepath.Dir(stateDir)) },
			loaded: true, says: owner,
		},
		"the whole directory": {
			change: func(t *testing.T, stateDir string) { require.NoError(t, os.Chmod(stateDir, 0o777)) },
			loaded: true, says: chmod,
		},
		"the whole directory, a group": {
			change: func(t *testing.T, stateDir string) { require.NoError(t, os.Chmod(stateDir, 0o770)) },
			loaded: true, says: chmod,
		},
		"the whole directory is another user's": {
			change: func(t *testing.T, stateDir string) { giveAway(t, stateDir) },
			loaded: true, says: owner,
		},
		"the folder of release files": {
			change: func(t *testing.T, stateDir string) { require.NoError(t, os.Chmod(releaseDir(stateDir), 0o1777)) },
			loaded: true, evidence: true, saved: true, says: chmod,
		},
		"the folder of release files is another user's": {
			change: func(t *testing.T, stateDir string) { giveAway(t, releaseDir(stateDir)) },
			loaded: true, evidence: true, saved: true, says: owner,
		},
		"the folder of release files is elsewhere": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Rename(releaseDir(stateDir), stateDir+"-elsewhere"))
				require.NoError(t, os.Symlink(stateDir+"-elsewhere", releaseDir(stateDir)))
			},
			loaded: true, evidence: true, saved: true, says: link,
		},
		"the folder of release files is a file": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Remove(releaseDir(stateDir)))
				require.NoError(t, os.WriteFile(releaseDir(stateDir), nil, 0o600))
			},
			loaded: true, evidence: true, saved: true, says: "not a folder",
		},
		"the folder of pods": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Chmod(filepath.Join(stateDir, "pods"), 0o775))
			},
			loaded: true, released: true, says: chmod,
		},
		"the folder of pods is elsewhere": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Rename(filepath.Join(stateDir, "pods"), stateDir+"-elsewhere"))
				require.NoError(t, os.Symlink(stateDir+"-elsewhere", filepath.Join(stateDir, "pods")))
			},
			loaded: true, released: true, says: link,
		},
		"the file of a pod is another user's": {
			change:   func(t *testing.T, stateDir string) { giveAway(t, filepath.Join(stateDir, "pods", "saved-uid.pod")) },
			released: true, saved: true, says: "saved-uid.pod",
		},
		"the file of a pod can be written by all": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Chmod(filepath.Join(stateDir, "pods", "saved-uid.pod"), 0o666))
			},
			released: true, saved: true, says: "saved-uid.pod",
		},
		"the file of a pod is elsewhere": {
			change: func(t *testing.T, stateDir string) {
				path := filepath.Join(stateDir, "pods", "saved-uid.pod")
				require.NoError(t, os.Rename(path, stateDir+"-elsewhere"))
				require.NoError(t, os.Symlink(stateDir+"-elsewhere", path))
			},
			released: true, saved: true, says: "saved-uid.pod",
		},
		"the file of a pod is a pipe": {
			change: func(t *testing.T, stateDir string) {
				path := filepath.Join(stateDir, "pods", "saved-uid.pod")
				require.NoError(t, os.Remove(path))
				require.NoError(t, syscall.Mkfifo(path, 0o600))
			},
			released: true, saved: true, says: "saved-uid.pod",
		},
		"the file of a pod has another name in a folder of everybody": {
			change: func(t *testing.T, stateDir string) {
				require.NoError(t, os.Link(filepath.Join(stateDir, "pods", "saved-uid.pod"), stateDir+"-elsewhere"))
				require.NoError(t, os.Chmod(filepath.Join(stateDir, "pods"), 0o777))
			},
			released: true, says: "saved-uid.pod",
		},
	} {
		t.Run(name, func(t *testing.T) {
			stateDir := filepath.Join(t.TempDir(), "guard")
			s, err := openStore(stateDir)
			require.NoError(t, err)
			require.NoError(t, s.save(savedPod{Pod: protectedPod("saved"), Evidence: &Evidence{Kind: PodDeletionRecord}}))
			test.change(t, stateDir)

			f := newFixture(t, func(c *Configuration) { c.StateDir = stateDir })
			t.Cleanup(f.saved)
			saved, loaded := f.loaded["saved-uid"]
			assert.Equal(t, test.loaded, loaded)
			assert.Equal(t, test.evidence, saved.Evidence != nil)
			released, fresh := protectedPod("released"), protectedPod("fresh")
			f.running(released, fresh)
			_ = os.WriteFile(filepath.Join(releaseDir(stateDir), "released-uid"), nil, 0o600)
			f.readReleasesSoon()
			f.saved()
			assert.Equal(t, test.released, f.state(released) == Terminating, "a release file")
			_, err = os.Lstat(f.store.path(fresh.UID))
			assert.Equal(t, test.saved, err == nil, "a new pod is saved")

			f.readReleasesSoon()
			f.saved()
			f.pass(2 * tidyInterval)
			f.saved()
			reported := 0
			for _, event := range f.events.all() {
				if strings.Contains(event, EventSavedPodUnusable) && strings.Contains(event, test.says) {
					reported++
				}
			}
			want := 0.0
			if test.says != "" {
				want = 1
				assert.Equal(t, 1, reported, "reported once, with what to do: %v", f.events.all())
			}
			assert.GreaterOrEqual(t, f.series()["errors_total{operation=StateDirectory}"], want)
			if test.says == "" {
				assert.Zero(t, f.series()["errors_total{operation=StateDirectory}"])
				info, err := os.Stat(f.store.dir)
				require.NoError(t, err)
				assert.Equal(t, os.FileMode(0o700), info.Mode().Perm(), "nobody reads the environment of pods")
			}
		})
	}
}

func TestReleaseFilesThatAnotherUserCouldHaveMade(t *testing.T) {
	elsewhere := t.TempDir()
	for kind, plant := range map[string]func(t *testing.T, path string){
		"folder": func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) },
		"symbolic link": func(t *testing.T, path string) {
			require.NoError(t, os.Symlink("/etc/passwd", path))
		},
		"dangling link": func(t *testing.T, path string) { require.NoError(t, os.Symlink("nowhere", path)) },
		"hard link": func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(filepath.Join(elsewhere, filepath.Base(path)), nil, 0o600))
			require.NoError(t, os.Link(filepath.Join(elsewhere, filepath.Base(path)), path))
		},
		"pipe": func(t *testing.T, path string) { require.NoError(t, syscall.Mkfifo(path, 0o600)) },
		"file of another user": func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, nil, 0o600))
			giveAway(t, path)
		},
	} {
		for _, uid := range []types.UID{"pod-uid", "no uid at all\nbut a name", "3f0d4c1e-8d0e-4f0b-9a57-0c1f6a3b2d10"} {
			t.Run(kind+" "+string(uid), func(t *testing.T) {
				f, _ := node(t)
				pod := protectedPod("p")
				pod.UID = uid
				f.running(pod)
				f.saved()
				path := filepath.Join(f.store.releases, string(uid))
				plant(t, path)
				for range 5 {
					f.readReleasesSoon()
					f.saved()
				}
				assert.Equal(t, Protected, f.state(pod))
				assert.Equal(t, 1, f.unusable(), "reported once")
				assert.Equal(t, 1.0, f.series()["errors_total{operation=StateDirectory}"])

				require.NoError(t, os.Remove(path))
				f.readReleasesSoon()
				f.saved()
				assert.Empty(t, f.saver.complaints, "and forgotten with the name")
				require.NoError(t, os.WriteFile(path, nil, 0o644))
				f.readReleasesSoon()
				f.saved()
				assert.Equal(t, Terminating, f.state(pod))
			})
		}
	}
}

func TestFolderIsCheckedWheneverItIsRead(t *testing.T) {
	f, _ := node(t)
	pod := protectedPod("p")
	f.running(pod)
	f.saved()
	require.NoError(t, os.WriteFile(filepath.Join(f.store.releases, string(pod.UID)), nil, 0o600))
	require.NoError(t, os.Chmod(f.store.releases, 0o777))
	assert.Empty(t, f.readReleases())
	assert.Empty(t, f.readReleases())
	assert.Equal(t, 1, f.unusable())
	require.NoError(t, os.Chmod(f.store.releases, 0o755))
	assert.Equal(t, []types.UID{pod.UID}, f.readReleases())
	require.NoError(t, os.Chmod(f.store.releases, 0o777))
	assert.Empty(t, f.readReleases())
	assert.Equal(t, 1, f.unusable(), "another time is another event")
}

func TestMissingFolderOfReleaseFilesIsNoError(t *testing.T) {
	f, _ := node(t)
	require.NoError(t, os.Remove(f.store.releases))
	assert.Empty(t, f.readReleases())
	assert.Zero(t, f.series()["errors_total{operation=StateDirectory}"])
}

func TestFailedWriteLeavesTheOldContent(t *testing.T) {
	s, err := openStore(filepath.Join(t.TempDir(), "guard"))
	require.NoError(t, err)
	old := savedPod{Pod: &v1.Pod{}}
	old.Pod.UID, old.Pod.Name = "a", "old"
	require.NoError(t, s.save(old))
	changed := savedPod{Pod: &v1.Pod{}}
	changed.Pod.UID, changed.Pod.Name = "a", "new"
	s.sync = func(file *os.File) error {
		if filepath.Base(file.Name()) == "a.pod.new" {
			return errors.New("input/output error")
		}
		return nil
	}
	require.ErrorContains(t, s.save(changed), "input/output error")
	pods, bad := s.load()
	assert.Empty(t, bad)
	assert.Equal(t, []savedPod{old}, pods)
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing of it is left")
}
