package kind

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
)

func TestParsePools(t *testing.T) {
	for text, want := range map[string][]Pool{
		"stock=1":                          {{Name: "stock", Nodes: 1}},
		"stock=1,guarded=2:guarded,blue=3": {{Name: "stock", Nodes: 1}, {Name: "guarded", Nodes: 2, Guarded: true}, {Name: "blue", Nodes: 3}},
	} {
		t.Run(text, func(t *testing.T) {
			got, err := ParsePools(text)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
	for text, want := range map[string]string{
		"":              "name=nodes",
		"stock":         "name=nodes",
		"stock=":        "name=nodes",
		"stock=0":       "at least 1",
		"stock=1:audit": "guarded",
		"stock=1:":      "guarded",
		"Stock=1":       "lower case",
		"a=1,a=2":       "twice",
	} {
		t.Run("not "+text, func(t *testing.T) {
			_, err := ParsePools(text)
			require.ErrorContains(t, err, want)
		})
	}
	pools, err := ParsePools(DefaultPools)
	require.NoError(t, err)
	require.NoError(t, validatePools(pools))
}

func TestConfigRefusesNames(t *testing.T) {
	for _, name := range []string{"", "Upper", "engine", "images", "root-0123", "a-name-that-is-longer-than-forty-characters"} {
		_, err := Config{Name: name, Output: "_output"}.complete()
		require.ErrorContains(t, err, "name of the cluster", name)
	}
	c, err := Config{Name: "fleet", Output: "_output"}.complete()
	require.NoError(t, err)
	require.Len(t, c.Pools, 5)
	require.NotNil(t, c.Log)
}

func TestNodesAreNamedAsKindNamesThem(t *testing.T) {
	s := state{
		Name:   "fleet",
		Images: nodeImages{Stock: "stock", Guarded: "guarded"},
		Nodes:  nodeNames("fleet", []Pool{{Name: "a", Nodes: 2}, {Name: "b", Nodes: 1, Guarded: true}}),
	}
	require.Equal(t, []nodeState{
		{Name: "fleet-control-plane"},
		{Name: "fleet-worker", Pool: "a"},
		{Name: "fleet-worker2", Pool: "a"},
		{Name: "fleet-worker3", Pool: "b", Guarded: true},
	}, s.Nodes)

	config := kindConfig(s)
	require.Equal(t, []v1alpha4.Node{
		{Role: v1alpha4.ControlPlaneRole, Image: "stock"},
		{Role: v1alpha4.WorkerRole, Image: "stock", Labels: map[string]string{PoolLabel: "a"}},
		{Role: v1alpha4.WorkerRole, Image: "stock", Labels: map[string]string{PoolLabel: "a"}},
		{Role: v1alpha4.WorkerRole, Image: "guarded", Labels: map[string]string{PoolLabel: "b"}},
	}, config.Nodes)
}

func TestThaw(t *testing.T) {
	root := t.TempDir()
	states := map[string]string{"docker/one": "FROZEN\n", "docker/one/pod": "FREEZING\n", "docker/one/other": "THAWED\n", "docker/two": "FROZEN\n"}
	for cgroup, state := range states {
		folder := filepath.Join(root, cgroup)
		require.NoError(t, os.MkdirAll(folder, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(folder, "freezer.state"), []byte(state), 0o644))
	}
	thaw(root, "one")
	thaw(root, "")
	thaw(filepath.Join(root, "absent"), "two")
	for cgroup, want := range map[string]string{"docker/one": "THAWED", "docker/one/pod": "THAWED", "docker/one/other": "THAWED\n", "docker/two": "FROZEN\n"} {
		state, err := os.ReadFile(filepath.Join(root, cgroup, "freezer.state"))
		require.NoError(t, err)
		require.Equal(t, want, string(state), cgroup)
	}
}
