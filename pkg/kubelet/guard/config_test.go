package guard

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected outcomes under testdata")

func configuration(change func(*Configuration)) *Configuration {
	c := DefaultConfiguration()
	change(c)
	return c
}

func TestLoadConfigurationAccepts(t *testing.T) {
	want := map[string]*Configuration{
		"minimal": DefaultConfiguration(),
		"every-field": configuration(func(c *Configuration) {
			c.Mode = Audit
			c.PodSelector = &metav1.LabelSelector{
				MatchLabels: map[string]string{"tier": "database"},
				MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: "environment", Operator: metav1.LabelSelectorOpIn, Values: []string{"production", "staging"}},
				},
			}
			c.AllowedCauses = []Cause{NodeShutdown, Evicted}
			c.StateDir = "/var/lib/guard"
		}),
		"off-without-quotes":       configuration(func(c *Configuration) { c.Mode = Off }),
		"comment-before-separator": DefaultConfiguration(),
		"expressions-only": configuration(func(c *Configuration) {
			c.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: ExplicitDeletionLabel, Operator: metav1.LabelSelectorOpExists},
			}}
		}),
		"json": configuration(func(c *Configuration) { c.Mode, c.AllowedCauses = Off, []Cause{Preempted} }),
	}
	got := map[string]*Configuration{}
	for _, path := range fixtures(t, "good") {
		config, err := LoadConfiguration(path)
		require.NoError(t, err, path)
		got[strings.TrimSuffix(filepath.Base(path), ".yaml")] = config
		_, err = New(Dependencies{Configuration: config})
		require.NoError(t, err, path)
	}
	assert.Equal(t, want, got)

	t.Run("no file means the defaults", func(t *testing.T) {
		config, err := LoadConfiguration("")
		require.NoError(t, err)
		assert.Equal(t, DefaultConfiguration(), config)
	})
}

// Each bad file has the expected error in a file of the same name that ends in
// .error; -rewrite updates them.
func TestLoadConfigurationRefuses(t *testing.T) {
	for _, path := range fixtures(t, "bad") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			config, err := LoadConfiguration(path)
			require.Error(t, err)
			assert.Nil(t, config)
			expected := strings.TrimSuffix(path, ".yaml") + ".error"
			if *rewrite {
				require.NoError(t, os.WriteFile(expected, []byte(err.Error()+"\n"), 0o644))
			}
			want, readErr := os.ReadFile(expected)
			require.NoError(t, readErr)
			assert.Equal(t, string(want), err.Error()+"\n")
		})
	}
	t.Run("missing file", func(t *testing.T) {
		_, err := LoadConfiguration("testdata/config/missing.yaml")
		require.ErrorIs(t, err, os.ErrNotExist)
		assert.EqualError(t, err, "--guard-config: cannot read the guard configuration: open testdata/config/missing.yaml: no such file or directory (give the path of a readable GuardConfiguration file, or drop the flag to use the defaults)")
	})
	t.Run("directory", func(t *testing.T) {
		_, err := LoadConfiguration("testdata/config")
		assert.EqualError(t, err, "--guard-config: cannot read the guard configuration: read testdata/config: is a directory (give the path of a readable GuardConfiguration file, or drop the flag to use the defaults)")
	})
}

func fixtures(t *testing.T, folder string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "config", folder, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	return paths
}

func TestNewRefusesWhatValidateRefuses(t *testing.T) {
	_, err := New(Dependencies{})
	assert.EqualError(t, err, "guard: Configuration is required")
	_, err = New(Dependencies{Configuration: &Configuration{}})
	assert.ErrorContains(t, err, "podSelector")
}

func TestStateDirectory(t *testing.T) {
	root := t.TempDir()
	occupied := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(occupied, nil, 0o600))
	for name, test := range map[string]struct {
		rootDir, stateDir, want string
		mode                    Mode
		exists                  bool
		errors                  float64
	}{
		"is the folder guard of the kubelet's by default": {rootDir: root, want: filepath.Join(root, "guard"), mode: Enforce, exists: true},
		"is that of the configuration":                    {rootDir: root, stateDir: filepath.Join(root, "a", "b"), want: filepath.Join(root, "a", "b"), mode: Audit, exists: true},
		"is not made in mode Off":                         {stateDir: filepath.Join(root, "off"), want: filepath.Join(root, "off"), mode: Off},
		"that cannot be made is counted and lived without": {
			stateDir: filepath.Join(occupied, "x"), want: filepath.Join(occupied, "x"), mode: Enforce, errors: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := New(Dependencies{Configuration: configuration(func(c *Configuration) { c.Mode, c.StateDir = test.mode, test.stateDir }), RootDir: test.rootDir})
			require.NoError(t, err)
			assert.Equal(t, test.want, g.stateDir)
			info, err := os.Stat(test.want)
			assert.Equal(t, test.exists, err == nil)
			if test.exists {
				assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())
			}
			assert.Equal(t, test.errors, gather(t, g)["errors_total{operation=StateDirectory}"])
		})
	}
}
