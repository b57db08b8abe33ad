package app

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// execute runs the program in this process.
func execute(arguments ...string) (string, error) {
	var out bytes.Buffer
	command := NewCommand(genericiooptions.IOStreams{In: strings.NewReader(""), Out: &out, ErrOut: &out})
	command.SetArgs(arguments)
	err := command.ExecuteContext(context.Background())
	return out.String(), err
}

// arguments are what verbs need at least.
var arguments = map[string][]string{"restore": {"configmap/a"}, "verify": {"snapshot.db"}}

func TestEveryVerb(t *testing.T) {
	t.Parallel()
	for _, verb := range NewCommand(genericiooptions.IOStreams{}).Commands() {
		name := verb.Name()
		require.NotEmpty(t, verb.Short, name)
		require.NotEmpty(t, verb.Long, name)
		for line := range strings.Lines(verb.Long) {
			require.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 84, "%s: %s", name, line)
		}
		for line := range strings.Lines(verb.Example) {
			if command, found := strings.CutPrefix(line, "  guard-etcd "); found {
				require.Equal(t, name, strings.Fields(command)[0], line)
			}
		}
		require.NotEmpty(t, verb.Example, name)

		out, err := execute("__complete", name, "-o", "")
		require.NoError(t, err)
		require.Equal(t, []string{"table", "wide", "json", "yaml"}, strings.Fields(out)[:4], name)
		require.Contains(t, strings.Fields(out), "jsonpath", name)
		_, err = execute(slices.Concat([]string{name}, arguments[name], []string{"-o", "xml"})...)
		require.ErrorContains(t, err, `--output: unknown format "xml"`, name)
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	const noFiles, dirs, extension, files = ":4", ":16", ":8", ":0"
	for command, want := range map[string]string{
		"access |":                         noFiles,
		"access --etcd-manifest |":         extension,
		"access --other-certificate |":     extension,
		"save |":                           dirs,
		"save --keep |":                    noFiles,
		"save --metrics-file |":            extension,
		"restore configmap/a -n |":         noFiles,
		"restore --acting |":               noFiles,
		"restore --journal-dir |":          dirs,
		"restore --from |":                 files,
		"log |":                            files,
		"verify |":                         files,
		"log --etcd-servers |":             noFiles,
		"log --etcd-cafile |":              files,
		"log --etcd-compaction-interval |": noFiles,
	} {
		words := strings.Fields(strings.TrimSuffix(command, "|"))
		out, err := execute(append(append([]string{"__complete"}, words...), "")...)
		require.NoError(t, err, command)
		require.Contains(t, strings.Fields(out), want, "%s: %s", command, out)
	}
}

func TestWhatIsRefusedBeforeEtcdIsReached(t *testing.T) {
	t.Parallel()
	_, err := execute("save", t.TempDir(), "--metrics-file=guard-etcd.txt")
	require.ErrorContains(t, err, "--metrics-file: guard-etcd.txt does not end in .prom")
	_, err = execute("save", t.TempDir(), "--keep=-1")
	require.ErrorContains(t, err, "--keep must not be negative")
	_, err = execute("access", "snapshot.db")
	require.ErrorContains(t, err, "snapshot.db")
}

func TestMetricsAreWrittenAfterASaveThatFailed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "guard-etcd.prom")
	_, err := execute("save", t.TempDir(), "--etcd-servers=http://127.0.0.1:1", "--metrics-file="+file)
	require.ErrorContains(t, err, "no member of etcd responds")
	require.FileExists(t, file)
	_, err = execute("save", t.TempDir(), "--etcd-servers=http://127.0.0.1:1", "--metrics-file="+filepath.Join(t.TempDir(), "absent", "a.prom"))
	require.ErrorContains(t, err, "no member of etcd responds")
	require.ErrorContains(t, err, "--metrics-file: ")
}
