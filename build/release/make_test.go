package release

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/build"
)

func TestAFolderIsCompleteOrNotThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "release")
	fill := func(text string, err error) func(string) error {
		return func(tmp string) error {
			return errors.Join(os.WriteFile(filepath.Join(tmp, checksumsFile), []byte(text), 0o644), err)
		}
	}
	require.EqualError(t, replace(dir, fill("first", errors.New("failed"))), "failed")
	require.NoDirExists(t, dir)
	require.NoError(t, replace(dir, fill("first", nil)))
	require.NoError(t, mayReplace(dir))
	require.EqualError(t, replace(dir, fill("second", errors.New("failed"))), "failed")
	data, err := os.ReadFile(filepath.Join(dir, checksumsFile))
	require.NoError(t, err)
	assert.Equal(t, "first", string(data))
	entries, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing else stays")

	foreign := t.TempDir()
	require.NoError(t, mayReplace(foreign), "an empty folder")
	require.NoError(t, os.WriteFile(filepath.Join(foreign, "thesis.txt"), nil, 0o644))
	assert.ErrorContains(t, mayReplace(foreign), "is not empty and not the folder of a release")
}

func TestAReleaseIsMadeFromACommit(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgSign=false"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1767225600 +0000")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	git("init", "-q")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	git("add", ".")
	git("commit", "-q", "-m", "first")
	m := Maker{
		Repo: build.Repo{Root: dir}, Upstreams: testBuilder(testRelease).upstreams,
		Registry: testRelease.Registry, URL: testRelease.URL,
	}
	r, err := m.release(t.Context())
	require.NoError(t, err)
	assert.Equal(t, time.Unix(1767225600, 0).UTC(), r.Time)
	assert.Equal(t, []string{"v1.36.3"}, r.KubeVersions)
	assert.Len(t, r.Commit, 40)

	require.NoError(t, m.unchanged(t.Context(), r))

	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("changed"), 0o644))
	_, err = m.release(t.Context())
	assert.ErrorContains(t, err, "the checkout has changes:\nM file")
	assert.ErrorContains(t, m.unchanged(t.Context(), r), "the checkout of commit "+r.Commit+" changed during the build")
	git("commit", "-q", "-a", "-m", "second")
	assert.ErrorContains(t, m.unchanged(t.Context(), r), "its commit is ")
}

func TestWhatCannotBeNamedIsRefused(t *testing.T) {
	require.NoError(t, testRelease.validate())
	for want, change := range map[string]func(r *Release){
		`release "0.1" is not a version`:                               func(r *Release) { r.Version = "0.1" },
		`commit "0123" is not the full hash`:                           func(r *Release) { r.Commit = "0123" },
		"the time of the commit is missing":                            func(r *Release) { r.Time = time.Time{} },
		"the version of Go is missing":                                 func(r *Release) { r.GoVersion = "" },
		"a version of Kubernetes is there twice: [v1.36.3 v1.36.3]":    func(r *Release) { r.KubeVersions = []string{"v1.36.3", "v1.36.3"} },
		"no Kubernetes version":                                        func(r *Release) { r.KubeVersions = nil },
		"the versions of Kubernetes are not sorted: [v1.36.3 v1.35.4]": func(r *Release) { r.KubeVersions = []string{"v1.36.3", "v1.35.4"} },
		`version "1.36" of Kubernetes is not one such`:                 func(r *Release) { r.KubeVersions = []string{"1.36"} },
		`registry "" is not one such`:                                  func(r *Release) { r.Registry = "" },
		`address "http://example.com" is not one`:                      func(r *Release) { r.URL = "http://example.com" },
	} {
		r := testRelease
		change(&r)
		assert.ErrorContains(t, r.validate(), want)
	}
	r := testRelease
	r.Version = "0.1.0.acme.3"
	assert.NoError(t, r.validate(), "a version of one's own, as in docs/building.md")
}

func TestNotesAreOfTheChangelog(t *testing.T) {
	const changelog = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- new\n\n## [0.1.0]\n\nThe first.\n\n## [0.0.9] - 2026-01-01\n\n- old\n"
	dir := t.TempDir()
	file := filepath.Join(dir, "CHANGELOG.md")
	r := ofTwoVersions()
	r.Version = "0.1.0"
	require.NoError(t, os.WriteFile(file, []byte(changelog), 0o644))
	require.NoError(t, r.writeNotes(dir, file))
	data, err := os.ReadFile(filepath.Join(dir, notesFile))
	require.NoError(t, err)
	assert.Equal(t, `# Kubelet Guard 0.1.0

Guarded kubelets: v1.35.4+guard.0.1.0, v1.36.3+guard.0.1.0. How to check and install them is in docs/releases.md.

## Changes after 0.1.0, in no release yet

### Added

- new

## 0.1.0

The first.
`, string(data))

	r.Version = "0.2.0"
	assert.EqualError(t, r.writeNotes(dir, file), "CHANGELOG.md: no section [0.2.0]")
	_, err = changelogSections("## [0.1.0]\n## [0.1.0]\n")
	assert.EqualError(t, err, "section [0.1.0] is there twice")
	_, err = changelogSections("")
	assert.EqualError(t, err, "no sections")
}
