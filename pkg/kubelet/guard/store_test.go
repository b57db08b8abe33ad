package guard

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestSavedPodsRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir)
	require.NoError(t, err)
	first := savedPod{
		Pod:      &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "a", Name: "one", Namespace: "n", Labels: map[string]string{"k": "v"}}},
		Evidence: &Evidence{Kind: DeletionTimestampSeen, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		SavedAt:  time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
	second := savedPod{Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "b", Name: "two"}}, SavedAt: first.SavedAt}
	require.NoError(t, s.save(first))
	require.NoError(t, s.save(second))
	pods, bad := s.load()
	assert.Empty(t, bad)
	assert.Equal(t, []savedPod{first, second}, pods)

	info, err := os.Stat(s.path("a"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())

	require.NoError(t, s.remove("a"))
	require.NoError(t, s.remove("a"), "a file that is gone is no error")
	pods, _ = s.load()
	assert.Equal(t, []savedPod{second}, pods)
}

func TestUnusableSavedPodsAreNamedAndHideNoOther(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(content []byte) []byte
		want   string
	}{
		"empty":     {func([]byte) []byte { return nil }, "its first line is not that of a saved pod"},
		"truncated": {func(c []byte) []byte { return c[:len(c)-10] }, "its content does not match its checksum"},
		"one bit":   {func(c []byte) []byte { c[len(c)-5] ^= 1; return c }, "its content does not match its checksum"},
		"newer": {func(c []byte) []byte {
			return append([]byte(savedHeader+"2"), c[len(savedHeader)+1:]...)
		}, "its format is v2 and this kubelet reads v1"},
		"other file": {func([]byte) []byte { return []byte("hello\n") }, "its first line is not that of a saved pod"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := openStore(t.TempDir())
			require.NoError(t, err)
			for _, uid := range []types.UID{"bad", "good"} {
				require.NoError(t, s.save(savedPod{Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}}}))
			}
			content, err := os.ReadFile(s.path("bad"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(s.path("bad"), test.damage(content), 0o600))
			pods, bad := s.load()
			require.Len(t, bad, 1)
			assert.EqualError(t, bad[0], "saved pod "+s.path("bad")+" cannot be used: "+test.want)
			require.Len(t, pods, 1)
			assert.Equal(t, types.UID("good"), pods[0].Pod.UID)
		})
	}
}

func TestUnfinishedWritesAreSweptAway(t *testing.T) {
	s, err := openStore(t.TempDir())
	require.NoError(t, err)
	left := filepath.Join(s.dir, "a"+savedSuffix+".new")
	require.NoError(t, os.WriteFile(left, []byte("half"), 0o600))
	pods, bad := s.load()
	assert.Empty(t, pods)
	assert.Empty(t, bad)
	assert.NoFileExists(t, left)
}
