package kind

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What another output folder's clusters need of the machine is found.
func TestOwnEnginesOfAllOutputFoldersAreFound(t *testing.T) {
	dir := t.TempDir()
	require.Empty(t, ownEngines(dir))
	for _, name := range []string{"kubelet-guard-kind-aaaa", "kubelet-guard-kind-bbbb", "other"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name, "docker.sock"), nil, 0o644))
	}
	// Of an engine that has ended.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "kubelet-guard-kind-cccc"), 0o755))
	require.Equal(t, []engine{
		{Host: "unix://" + dir + "/kubelet-guard-kind-aaaa/docker.sock", Own: true, RunDir: dir + "/kubelet-guard-kind-aaaa"},
		{Host: "unix://" + dir + "/kubelet-guard-kind-bbbb/docker.sock", Own: true, RunDir: dir + "/kubelet-guard-kind-bbbb"},
	}, ownEngines(dir))

	match, err := filepath.Match(filepath.Join(runDir, "kubelet-guard-kind-*"), ownEngine("/output").RunDir)
	require.NoError(t, err)
	require.True(t, match)
}

func TestEngineIsTheUsersWhereNoneIsChosen(t *testing.T) {
	t.Cleanup(func() { userHost = os.Getenv("DOCKER_HOST") })
	userHost = "unix:///user.sock"
	require.Equal(t, "unix:///user.sock", engine{}.host())
	require.Equal(t, "unix:///own.sock", engine{Host: "unix:///own.sock"}.host())
}
