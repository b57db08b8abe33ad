package host

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPathFollowsLinksAsTheNodeDoes(t *testing.T) {
	dir := t.TempDir()
	r := Root(dir)
	require.NoError(t, r.Write("/opt/k8s/kubelet-1", []byte("1"), 0o755))
	require.NoError(t, r.Link("/opt/k8s/kubelet-1", "/usr/bin/kubelet"))
	require.NoError(t, r.Link("usr/bin", "/bin"))
	require.NoError(t, r.Link("../../../../etc/passwd", "/opt/up"))
	require.NoError(t, r.Link("/loop", "/loop"))

	assert.Equal(t, filepath.Join(dir, "opt/k8s/kubelet-1"), r.Path("/bin/kubelet"))
	assert.Equal(t, filepath.Join(dir, "etc/passwd"), r.Path("/opt/up"))
	assert.Equal(t, filepath.Join(dir, "not/there"), r.Path("/not/there"))
	_, err := r.Read("/loop")
	assert.Error(t, err)
}

func TestWriteReplacesAndLeavesNothingElse(t *testing.T) {
	r := Root(t.TempDir())
	require.NoError(t, r.Write("/etc/a/b/file", []byte("old"), 0o600))
	require.NoError(t, r.Write("/etc/a/b/file", []byte("new"), 0o644))
	data, err := r.Read("/etc/a/b/file")
	require.NoError(t, err)
	assert.Equal(t, "new", string(data))
	info, err := os.Stat(r.Path("/etc/a/b/file"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o644), info.Mode())
	names, err := r.Folder("/etc/a/b")
	require.NoError(t, err)
	assert.Equal(t, []string{"file"}, names)

	require.NoError(t, r.Remove("/etc/a/b/file"))
	require.NoError(t, r.Remove("/etc/a/b/file"), "what is gone is removed")
	assert.False(t, r.Exists("/etc/a/b/file"))

	require.NoError(t, r.Write("/etc/file", nil, 0o644))
	assert.ErrorContains(t, r.Write("/etc/file/x", nil, 0o644), "/etc/file/x")
}

func TestInstallRefusesADamagedCopy(t *testing.T) {
	r := Root(t.TempDir())
	source := filepath.Join(t.TempDir(), "kubelet")
	require.NoError(t, os.WriteFile(source, []byte("program"), 0o600))
	sum, err := Checksum(source)
	require.NoError(t, err)

	err = r.Install(source, "/opt/x/kubelet", "00", "/usr/bin/kubelet")
	assert.ErrorContains(t, err, "the copy has the checksum "+sum)
	names, err := r.Folder("/opt/x")
	require.NoError(t, err)
	assert.Empty(t, names)

	require.NoError(t, r.Install(source, "/opt/x/kubelet", sum, "/usr/bin/kubelet"))
	before, err := os.Stat(r.Path("/opt/x/kubelet"))
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o755), before.Mode())
	require.NoError(t, r.Install(source, "/opt/x/kubelet", sum, "/usr/bin/kubelet"))
	after, err := os.Stat(r.Path("/opt/x/kubelet"))
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after), "a program that is complete is not replaced")
}

func TestChecksumSeesAChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("a"), 0o600))
	first, err := Checksum(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("bb"), 0o600))
	second, err := Checksum(path)
	require.NoError(t, err)
	assert.NotEqual(t, first, second)
}

func TestThisProcess(t *testing.T) {
	r := Root("/")
	process, err := r.Process(os.Getpid())
	require.NoError(t, err)
	exe, err := os.Executable()
	require.NoError(t, err)
	sum, err := Checksum(exe)
	require.NoError(t, err)
	assert.Equal(t, sum, process.SHA256)
	assert.Equal(t, os.Args, process.Arguments)

	boot, err := r.Boot()
	require.NoError(t, err)
	again, err := r.Boot()
	require.NoError(t, err)
	assert.Equal(t, boot, again)

	system, err := r.FileSystem("/tmp/not/there/yet")
	require.NoError(t, err)
	assert.NotZero(t, system.Free)
}

func TestFlagTakesTheLastValue(t *testing.T) {
	p := Process{Arguments: []string{"kubelet", "--config=/a", "--x", "--config", "/b"}}
	value, ok := p.Flag("--config")
	assert.True(t, ok)
	assert.Equal(t, "/b", value)
	_, ok = p.Flag("--con")
	assert.False(t, ok)
}
