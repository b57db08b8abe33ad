package build

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gotest.tools/gotestsum/testjson"
)

func TestUpstreamTestsAreJudged(t *testing.T) {
	f := newFakeRepo(t)
	files := fakeUpstream()
	flag := t.TempDir() + "/once"
	files["pkg/kubelet/eviction/eviction_test.go"] = `package eviction

import (
	"os"
	"testing"
)

func TestPasses(t *testing.T) {}

func TestSkips(t *testing.T) { t.Skip("not here") }

// TestIsTimingSensitive fails among the others and passes alone.
func TestIsTimingSensitive(t *testing.T) {
	if _, err := os.Stat("` + flag + `"); err != nil {
		_ = os.WriteFile("` + flag + `", nil, 0o644)
		t.Fatal("too slow")
	}
}

func TestFailsUpstreamToo(t *testing.T) {
	t.Run("part", func(t *testing.T) { t.Error("broken") })
}

func TestIsAMatterOfChance(t *testing.T) {
	t.Run("many (20)", func(t *testing.T) { t.Error("not this time") })
	t.Run("one", func(t *testing.T) {})
}
`
	files["pkg/kubelet/fuzz/fuzz_test.go"] = `//go:build !notest

package fuzz

import "testing"

func TestFuzz(t *testing.T) {}
`
	files["pkg/kubelet/fuzz/doc.go"] = "package fuzz\n"
	f.pin("v1.36.4", files)
	f.withPatches()
	// One hook too many: it breaks two upstream tests, of which one is expected.
	require.NoError(t, f.edit().Apply(ctx, false))
	f.hook("kubelet: break", "pkg/kubelet/kubelet.go", "func SyncPod(pod string) bool {\n", "func SyncPod(pod string) bool {\n\tif pod == \"\" {\n\t\treturn true\n\t}\n")
	f.hook("kubelet: break more", "pkg/kubelet/kubelet.go", `return "node"`, `return "knot"`)
	require.NoError(t, f.edit().Export(ctx, false))
	f.write("patches/v1.36/tests/pkg/kubelet/hooks_test.go", "package kubelet\n\nimport \"testing\"\n\nfunc TestHook(t *testing.T) { t.Error(\"the hook is missing\") }\n")
	f.write("patches/v1.36/upstream-tests.yaml", `
deviations:
- package: example.test/kubernetes/pkg/kubelet
  test: TestName
  reason: a guarded node is called otherwise
unsteady:
- package: example.test/kubernetes/pkg/kubelet/eviction
  test: TestIsAMatterOfChance/many_(20)
  reason: it waits for a coincidence
- package: example.test/kubernetes/pkg/kubelet/eviction
  test: TestWasRemoved/some
  reason: it waited for another one
- package: example.test/kubernetes/pkg/kubelet/elsewhere
  test: TestElsewhere
  reason: its package is not run
fuzzing: [example.test/kubernetes/pkg/kubelet/fuzz]
`)
	u := f.upstream()
	packages := []string{"./pkg/kubelet", "./pkg/kubelet/guard", "./pkg/kubelet/eviction", "./pkg/kubelet/fuzz"}

	var out bytes.Buffer
	got, err := f.TestUpstream(ctx, u, Guarded, packages, &out)
	require.NoError(t, err)
	short := func(s string) string { return strings.ReplaceAll(s, fakeModule+"/", "") }
	for _, list := range [][]string{got.Retried, got.Expected, got.LeftOut, got.FailUpstream, got.Unexpected} {
		for i := range list {
			list[i] = short(list[i])
		}
	}
	require.Equal(t, TestSummary{
		Packages: 4,
		// TestSyncPod/named, TestKeep, TestPasses, TestFuzz, TestIsAMatterOfChance and its
		// other part, and the retried one.
		Passed: 7, Failed: 2, Skipped: 1,
		Retried:  []string{"pkg/kubelet/eviction TestIsTimingSensitive"},
		Expected: []string{"pkg/kubelet TestName: a guarded node is called otherwise"},
		LeftOut: []string{
			"pkg/kubelet/eviction TestIsAMatterOfChance/many_(20): it waits for a coincidence",
			"pkg/kubelet/eviction TestWasRemoved/some: it waited for another one",
		},
		FailUpstream: []string{"pkg/kubelet/eviction TestFailsUpstreamToo/part"},
		Unexpected:   []string{"pkg/kubelet TestHook", "pkg/kubelet TestSyncPod/unnamed"},
	}, got)
	require.Contains(t, out.String(), "the hook is missing", "the output of what failed is shown")
	require.Contains(t, out.String(), "TestWasRemoved/some: listed in upstream-tests.yaml, but there is no TestWasRemoved; remove it from the list")

	var summary bytes.Buffer
	got.Print(&summary)
	require.True(t, strings.HasSuffix(summary.String(), "\n7 passed, 2 failed, 1 skipped\n"), summary.String())

	require.NoError(t, os.Remove(flag))
	got, err = f.TestUpstream(ctx, u, Stock, []string{"./pkg/kubelet", "./pkg/kubelet/eviction"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, 1, got.Failed, "nothing is expected to fail in the stock tree, nor excused by it")
	require.Equal(t, "pkg/kubelet/eviction TestFailsUpstreamToo/part", short(got.Unexpected[0]))
}

func TestHooksAreTestedAlone(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	_, err := f.TestHooks(ctx, f.upstream(), io.Discard)
	require.ErrorContains(t, err, "v1.36.3 has no in-tree tests in patches")
	f.write("patches/tests/pkg/kubelet/hooks_test.go", `package kubelet

import "testing"

func TestGuardHook(t *testing.T) {}

func TestOther(t *testing.T) { t.Error("runs, too") }
`)
	f.write("patches/v1.36/tests/pkg/kubelet/eviction/minor_test.go", "package eviction\n\nimport \"testing\"\n\nfunc TestGuardMinor(t *testing.T) { t.Error(\"the hook is missing\") }\n")
	s, err := f.TestHooks(ctx, f.upstream(), io.Discard)
	require.NoError(t, err)
	require.Equal(t, TestSummary{Packages: 2, Passed: 1, Failed: 1, Unexpected: []string{fakeModule + "/pkg/kubelet/eviction TestGuardMinor"}}, s)
}

// What the go command remembers of tests holds in any checkout, and only for the same
// sources, test data included. The tests count their runs in a file that is no input.
func TestResultsOfTestsHoldForTheSameSourcesOnly(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	runs := t.TempDir() + "/runs"
	const data, test = "patches/v1.36/tests/pkg/kubelet/testdata/a.txt", "patches/v1.36/tests/pkg/kubelet/hooks_test.go"
	f.write(data, "kept\n")
	f.write(test, `package kubelet

import (
	"os"
	"testing"
)

func TestHook(t *testing.T) {
	file, err := os.OpenFile("`+runs+`", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = file.WriteString("x")
	file.Close()
	data, err := os.ReadFile("testdata/a.txt")
	if err != nil || string(data) != "kept\n" {
		t.Errorf("%q, %v", data, err)
	}
	if dir, err := os.Getwd(); err != nil || !SyncPod("protected") {
		t.Errorf("not synced in %s, %v", dir, err)
	}
}
`)
	want := 0
	check := func(r *fakeRepo, again bool, failed ...string) {
		t.Helper()
		var out bytes.Buffer
		got, err := r.TestUpstream(ctx, r.upstream(), Guarded, []string{"./pkg/kubelet"}, &out)
		require.NoError(t, err)
		require.Equal(t, failed, got.Unexpected)
		require.Equal(t, !again, strings.Contains(out.String(), "(cached)"), out.String())
		data, err := os.ReadFile(runs)
		require.NoError(t, err)
		if again {
			require.Greater(t, len(data), want)
		} else {
			require.Len(t, data, want)
		}
		want = len(data)
	}
	check(f, true)
	check(f.other(), false)
	// The tree was removed meanwhile, and is made again at the same place.
	require.NoError(t, os.RemoveAll(filepath.Join(f.Cache, "trees")))
	check(f.other(), false)

	const red = "example.test/kubernetes/pkg/kubelet TestHook"
	guard := f.other()
	guard.write(GuardDir+"/guard.go", strings.Replace(f.read(GuardDir+"/guard.go"), "pod == \"protected\"", "pod == \"otherwise\"", 1)+"\nfunc init() { panic(\"a line more\") }\n")
	var out bytes.Buffer
	got, err := guard.TestUpstream(ctx, guard.upstream(), Guarded, []string{"./pkg/kubelet"}, &out)
	require.NoError(t, err)
	require.Equal(t, []string{"example.test/kubernetes/pkg/kubelet (the package as a whole)"}, got.Unexpected)

	patched := f.other()
	patch := "patches/v1.36/" + syncPatch
	patched.write(patch, strings.Replace(f.read(patch), "+\t\treturn true\n", "+\t\treturn 1>2\n", 1))
	check(patched, true, red)

	other := f.other()
	other.write(data, "lost\n")
	check(other, true, red)

	off := f.other()
	off.Cache = ""
	check(off, true)
	check(off, true)
}

func TestUpstreamTestsReportAPackageThatDoesNotCompile(t *testing.T) {
	f := newFakeRepo(t)
	f.write("patches/v1.36/tests/pkg/kubelet/hooks_test.go", "package kubelet\n\nvar _ = missing\n")
	var out bytes.Buffer
	got, err := f.TestUpstream(ctx, f.upstream(), Guarded, []string{"./pkg/kubelet"}, &out)
	require.NoError(t, err)
	require.Equal(t, 1, got.Failed)
	require.Contains(t, got.Unexpected[0], "pkg/kubelet (the package as a whole)")
	require.Contains(t, out.String(), "undefined: missing")
}

func TestFailuresNameTheInnermostTest(t *testing.T) {
	e, err := testjson.ScanTestOutput(testjson.ScanConfig{Stdout: strings.NewReader(strings.Join([]string{
		`{"Action":"fail","Package":"p","Test":"TestA/sub/case"}`,
		`{"Action":"fail","Package":"p","Test":"TestA/sub"}`,
		`{"Action":"pass","Package":"p","Test":"TestA/other"}`,
		`{"Action":"fail","Package":"p","Test":"TestA"}`,
		`{"Action":"fail","Package":"p","Test":"TestB"}`,
		`{"Action":"output","Package":"p","Output":"FAIL\n"}`,
		`{"Action":"fail","Package":"p"}`,
		`{"Action":"fail","Package":"q"}`,
		`{"Action":"fail","Package":"s","Test":"TestPanics"}`,
		`{"Action":"output","Package":"s","Output":"FAIL\ts\t0.1s\n"}`,
		`{"Action":"fail","Package":"s"}`,
		`{"Action":"pass","Package":"r","Test":"TestC"}`,
		`{"Action":"pass","Package":"r"}`,
	}, "\n"))})
	require.NoError(t, err)
	run := newTestRun(e)
	require.Equal(t, []testID{{"p", "TestA/sub/case"}, {"p", "TestB"}, {"q", ""}, {"s", ""}, {"s", "TestPanics"}}, run.failures(),
		"a package that died is to run again as a whole")
	require.Equal(t, "^(TestA|TestB)$", runPattern([]testID{{"p", "TestB"}, {"p", "TestA/sub/case"}, {"p", "TestA/x"}}))
	require.Empty(t, runPattern([]testID{{"p", ""}}), "a package that failed as a whole runs as a whole")
}

func TestLoadUpstreamTestsIsStrict(t *testing.T) {
	file := t.TempDir() + "/upstream-tests.yaml"
	got, err := LoadUpstreamTests(file)
	require.NoError(t, err)
	require.Empty(t, got)
	for content, want := range map[string]string{
		"deviation: []\n": `unknown field "deviation"`,
		"deviations:\n- package: p\n  test: TestA\n": "deviations[0]: package, test and reason are all required",
		"unsteady:\n- package: p\n  reason: r\n":     "unsteady[0]: package, test and reason are all required",
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		_, err := LoadUpstreamTests(file)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, file)
	}
}
