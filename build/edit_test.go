package build

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var ctx = context.Background()

func TestApplyAndExportRoundTrip(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	require.Equal(t, syncPatch+"\n"+killPatch+"\n", f.read("patches/v1.36/series"))
	before := snapshot(t, f.path("patches"))

	require.NoError(t, f.edit().Apply(ctx, false))
	head := f.git("rev-parse", "HEAD")
	require.NoError(t, f.edit().Export(ctx, false))
	require.Equal(t, before, snapshot(t, f.path("patches")), "an export of what was applied has the same bytes")

	// Another clone, another day: the same commits.
	require.NoError(t, os.RemoveAll(f.edit().Dir()))
	require.NoError(t, f.edit().Apply(ctx, false))
	require.Equal(t, head, f.git("rev-parse", "HEAD"))
}

func TestExportDoesNotDependOnTheDeveloper(t *testing.T) {
	f := newFakeRepo(t)
	require.NoError(t, f.edit().Apply(ctx, false))
	for key, value := range map[string]string{
		"user.name": "A Developer", "user.email": "dev@machine.example", "diff.noprefix": "true", "format.signature": "x",
		"format.numbered": "true", "diff.context": "7", "diff.algorithm": "patience", "core.abbrev": "7", "format.attach": "true",
	} {
		f.git("config", key, value)
	}
	f.hook(syncHook, "pkg/kubelet/kubelet.go", "func SyncPod(pod string) bool {\n", "func SyncPod(pod string) bool {\n\t_ = 1\n")
	require.NoError(t, f.edit().Export(ctx, false))
	require.Equal(t, "A Developer", f.git("log", "-1", "--format=%an"))
	patch := f.read("patches/v1.36/" + syncPatch)
	require.NotContains(t, patch, "Developer")
	require.True(t, strings.HasPrefix(patch, `From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Kubelet Guard <noreply@kubelet-guard.io>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] kubelet: keep protected pods in SyncPod

A pod must not be lost here.

Forwarded: no
Drop-When: upstream asks before it kills

diff --git a/pkg/kubelet/kubelet.go b/pkg/kubelet/kubelet.go
`), patch)
	require.NoError(t, f.VerifyPatchesForTest())
}

func TestProcessesShareTheRepositoryOfACheckout(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	require.NoError(t, os.RemoveAll(f.path("_output")))
	s, err := f.source(f.upstream(), Guarded)
	require.NoError(t, err)
	commits := make([]string, 8)
	var group errgroup.Group
	for i := range commits {
		group.Go(func() (err error) {
			commits[i], err = f.commit(ctx, s, io.Discard)
			return err
		})
	}
	require.NoError(t, group.Wait())
	for _, commit := range commits {
		require.Equal(t, commits[0], commit)
	}
}

// VerifyPatchesForTest verifies without a README.
func (f *fakeRepo) VerifyPatchesForTest() error { return f.verifyReexportForTest(f.upstream()) }

func (f *fakeRepo) verifyReexportForTest(u Upstream) error {
	series, err := LoadSeries(f.patchDir(u))
	if err != nil {
		return err
	}
	return f.verifyReexport(ctx, u, series, io.Discard)
}

func TestApplyRefusesToLoseWork(t *testing.T) {
	for name, tc := range map[string]struct {
		work func(f *fakeRepo)
		want string
	}{
		"an uncommitted change": {func(f *fakeRepo) { f.write("_output/edit/v1.36/pkg/kubelet/kubelet.go", "package kubelet\n") }, "uncommitted changes:\n   M pkg/kubelet/kubelet.go"},
		"an untracked file":     {func(f *fakeRepo) { f.write("_output/edit/v1.36/pkg/new.go", "package pkg\n") }, "?? pkg/new.go"},
		"a commit":              {func(f *fakeRepo) { f.hook("kubelet: more", "pkg/kubelet/kubelet.go", "node", "knot") }, "commits that were not exported"},
		"a change of the guard": {func(f *fakeRepo) { f.write("_output/edit/v1.36/"+GuardDir+"/guard.go", "package guard\n") }, "uncommitted changes:\n   M " + GuardDir + "/guard.go"},
		"a commit of the guard": {func(f *fakeRepo) { f.hook("kubelet: keep more", GuardDir+"/guard.go", "protected", "guarded") }, "commits that were not exported"},
		"an unfinished am": {func(f *fakeRepo) {
			require.NoError(f.t, os.Mkdir(f.git("rev-parse", "--git-path", "rebase-apply"), 0o755))
		}, "an unfinished git am"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeRepo(t).withPatches()
			tc.work(f)
			err := f.edit().Apply(ctx, false)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "--force")
			require.NoError(t, f.edit().Apply(ctx, true))
			require.Empty(t, f.git("status", "--porcelain"))
			require.Equal(t, f.read(GuardDir+"/guard.go"), f.read("_output/edit/v1.36/"+GuardDir+"/guard.go"))
			require.NoError(t, f.edit().Apply(ctx, false))
		})
	}
}

func TestExportRefuses(t *testing.T) {
	t.Run("without a work tree", func(t *testing.T) {
		f := newFakeRepo(t)
		require.ErrorContains(t, f.edit().Export(ctx, false), "_output/edit/v1.36 does not exist; run guard-build patches apply first")
	})
	f := newFakeRepo(t).withPatches()
	before := snapshot(t, f.path("patches"))
	refuses := func(want string) {
		t.Helper()
		require.ErrorContains(t, f.edit().Export(ctx, false), want)
		require.Equal(t, before, snapshot(t, f.path("patches")))
	}
	t.Run("uncommitted changes", func(t *testing.T) {
		f.write("_output/edit/v1.36/pkg/new.go", "package pkg\n")
		refuses("has uncommitted changes")
		require.NoError(t, os.Remove(f.path("_output", "edit", "v1.36", "pkg", "new.go")))
	})
	t.Run("nothing", func(t *testing.T) {
		f.git("reset", "-q", "--hard", f.git("rev-list", "--max-parents=0", "HEAD"))
		refuses("exporting it would delete every patch")
		require.ErrorContains(t, f.edit().Export(ctx, true), "exporting it would delete every patch", "whatever is allowed")
	})
	t.Run("fewer than before", func(t *testing.T) {
		require.NoError(t, f.edit().Apply(ctx, true))
		f.git("reset", "-q", "--hard", "HEAD~1")
		refuses("has 1 commits, the series has 2 patches; missing: " + killPatch)
	})
	t.Run("two commits with one name", func(t *testing.T) {
		require.NoError(t, f.edit().Apply(ctx, true))
		f.hook("kubelet: keep protected pods in syncPod", "pkg/kubelet/kubelet.go", "node", "knot")
		refuses("give them different subjects")
	})
	t.Run("a merge", func(t *testing.T) {
		require.NoError(t, f.edit().Apply(ctx, true))
		f.git("checkout", "-q", "-b", "side", "HEAD~1")
		f.git("commit", "-q", "--allow-empty", "-m", "kubelet: aside")
		f.git("checkout", "-q", "edit/v1.36")
		f.git("merge", "-q", "--no-edit", "side")
		refuses("has merge commits")
	})
	t.Run("fewer are exported when that is meant", func(t *testing.T) {
		require.NoError(t, f.edit().Apply(ctx, true))
		f.git("reset", "-q", "--hard", "HEAD~1")
		require.NoError(t, f.edit().Export(ctx, true))
		require.Equal(t, syncPatch+"\n", f.read("patches/v1.36/series"))
		require.NoFileExists(t, f.path("patches", "v1.36", killPatch))
	})
}

func TestApplyTakesTheGuardPackageAndTestsOfTheCheckout(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	const home, committed = "patches/v1.36/tests/pkg/kubelet/hooks_test.go", "_output/edit/v1.36/pkg/kubelet/hooks_test.go"
	f.hook("kubelet: keep the name", "pkg/kubelet/kubelet.go", "node", "knot")
	f.write(GuardDir+"/guard.go", "package guard\n\n// Keep keeps.\nfunc Keep(string) bool { return true }\n")
	f.write(home, "package kubelet\n")
	require.NoError(t, os.Remove(f.path("pkg", "kubelet", "guard", "guard_test.go")))
	require.ErrorContains(t, f.edit().Apply(ctx, false), "commits that were not exported")
	require.NoError(t, f.edit().Export(ctx, false), "which keeps what changed in the checkout")
	require.Equal(t, "package kubelet\n", f.read(home))
	require.NoFileExists(t, f.path("pkg", "kubelet", "guard", "guard_test.go"))

	before := snapshot(t, f.path("patches"))
	require.NoError(t, f.edit().Apply(ctx, false))
	require.Equal(t, f.read(GuardDir+"/guard.go"), f.read("_output/edit/v1.36/"+GuardDir+"/guard.go"))
	require.Equal(t, "package kubelet\n", f.read(committed))
	require.NoFileExists(t, f.path("_output", "edit", "v1.36", "pkg", "kubelet", "guard", "guard_test.go"))
	require.Empty(t, f.git("status", "--porcelain"))
	require.NoError(t, f.edit().Export(ctx, false))
	require.Equal(t, before, snapshot(t, f.path("patches")), "no patch contains them")
}

func TestExportWritesTheGuardPackageAndTests(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	const home, committed = "patches/v1.36/tests/pkg/kubelet/hooks_test.go", "_output/edit/v1.36/pkg/kubelet/hooks_test.go"
	f.write(home, "package kubelet\n")
	require.NoError(t, f.edit().Apply(ctx, false))
	f.write(committed, "package kubelet // edited\n")
	require.ErrorContains(t, f.edit().Export(ctx, false), "uncommitted changes:\n   M pkg/kubelet/hooks_test.go")

	// A hook with its test in one commit, a test that goes, and a change of the guard.
	f.write("_output/edit/v1.36/pkg/kubelet/more_test.go", "package kubelet\n")
	f.git("add", "-A")
	f.hook("kubelet: keep the name", "pkg/kubelet/kubelet.go", "node", "knot")
	f.hook("kubelet: keep more", GuardDir+"/guard.go", "protected", "guarded")
	f.git("rm", "-q", GuardDir+"/guard_test.go")
	f.git("commit", "-q", "-m", "kubelet: test less")
	f.write("patches/v1.36/tests/pkg/kubelet/meanwhile_test.go", "package kubelet\n")
	require.NoError(t, f.edit().Export(ctx, false))
	require.Equal(t, "package kubelet // edited\n", f.read(home))
	require.Equal(t, "package kubelet\n", f.read("patches/tests/pkg/kubelet/more_test.go"), "a new test is one of all versions")
	require.Contains(t, f.read(GuardDir+"/guard.go"), "guarded")
	require.NoFileExists(t, f.path("pkg", "kubelet", "guard", "guard_test.go"))
	require.FileExists(t, f.path("patches", "v1.36", "tests", "pkg", "kubelet", "meanwhile_test.go"), "what is new in the checkout stays")
	require.Equal(t, syncPatch+"\n"+killPatch+"\nkubelet-keep-the-name.patch\n", f.read("patches/v1.36/series"), "commits of added files alone are no patches")
	require.NotContains(t, f.read("patches/v1.36/kubelet-keep-the-name.patch"), "_test.go")
	before := snapshot(t, f.path("patches"))
	require.NoError(t, f.edit().Apply(ctx, false))
	require.NoError(t, f.edit().Export(ctx, false))
	require.Equal(t, before, snapshot(t, f.path("patches")))

	f.write(committed, "package kubelet // one way\n")
	f.git("commit", "-q", "-a", "-m", "kubelet: one way")
	f.write(home, "package kubelet // another way\n")
	require.ErrorContains(t, f.edit().Export(ctx, false), "merge the two by hand")
	require.Equal(t, "package kubelet // another way\n", f.read(home))
}

func TestExportWritesATestToTheFolderThatItIsFrom(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	const tree = "_output/edit/v1.36/pkg/kubelet/"
	all, own := "patches/tests/pkg/kubelet/hooks_test.go", "patches/v1.36/tests/pkg/kubelet/minor_test.go"
	f.write(all, "package kubelet\n")
	f.write(own, "package kubelet\n")
	require.NoError(t, f.edit().Apply(ctx, false))
	require.Equal(t, "package kubelet\n", f.read(tree+"hooks_test.go"))
	require.Equal(t, "package kubelet\n", f.read(tree+"minor_test.go"))

	f.write(tree+"hooks_test.go", "package kubelet // all\n")
	f.write(tree+"minor_test.go", "package kubelet // one\n")
	f.git("commit", "-q", "-a", "-m", "kubelet: test more")
	require.NoError(t, f.edit().Export(ctx, false))
	require.Equal(t, "package kubelet // all\n", f.read(all))
	require.Equal(t, "package kubelet // one\n", f.read(own))
	require.NoFileExists(t, f.path("patches", "v1.36", "tests", "pkg", "kubelet", "hooks_test.go"))
	require.NoFileExists(t, f.path("patches", "tests", "pkg", "kubelet", "minor_test.go"))

	f.write("patches/v1.36/tests/pkg/kubelet/hooks_test.go", "package kubelet\n")
	require.ErrorContains(t, f.edit().Apply(ctx, false), "patches/v1.36/tests/pkg/kubelet/hooks_test.go: patches/tests has the same file")
}

// offHunk is the header of a hunk that will be given another line number.
var offHunk = regexp.MustCompile(`@@ -\d+,6 \+\d+,9 @@`)

func TestVerifyPatches(t *testing.T) {
	const readme = "# Patches\n\n<!-- BEGIN v1.36: generated by make generate; do not edit -->\n<!-- END v1.36 -->\n\nEnd.\n"
	verify := func(f *fakeRepo) (string, error) {
		var out bytes.Buffer
		err := f.VerifyPatches(ctx, f.upstream(), &out)
		return out.String(), err
	}
	f := newFakeRepo(t)
	f.write("patches/README.md", readme)
	f.withPatches()
	out, err := verify(f)
	require.NoError(t, err, "the export wrote the table")
	require.Contains(t, out, "total of 2 patches")
	require.Contains(t, out, "patches/v1.36: 2 patches apply to v1.36.3 without fuzz and export to the same bytes")
	require.Equal(t, `# Patches

<!-- BEGIN v1.36: generated by make generate; do not edit -->

| patch for v1.36.3 | hooks | lines | why | drop when |
|---|---|---:|---|---|
| [kubelet: keep protected pods in SyncPod](v1.36/kubelet-keep-protected-pods-in-syncpod.patch) | `+"`kubelet.go`"+` | +5 −0 | A pod must not be lost here. | upstream asks before it kills |
| [kubelet: ask before a pod is killed](v1.36/kubelet-ask-before-a-pod-is-killed.patch) | `+"`kubelet.go`"+` | +3 −0 | A pod must not be lost here. | upstream asks before it kills |
| **2 patches** | | **+8 −0** | | |

<!-- END v1.36 -->

End.
`, f.read("patches/README.md"))

	good := f.read("patches/v1.36/" + killPatch)
	for name, tc := range map[string]struct {
		spoil func()
		want  string
	}{
		"a patch that no series lists": {func() { f.write("patches/v1.36/stray.patch", good) }, "stray.patch: the series file does not list it"},
		"a patch with an offset": {func() {
			f.write("patches/v1.36/"+killPatch, offHunk.ReplaceAllString(good, "@@ -19,6 +19,9 @@"))
		}, "not what an export writes: " + killPatch + "; the right bytes are in _output/patches/v1.36"},
		"a patch with fuzz": {func() {
			f.write("patches/v1.36/"+killPatch, strings.Replace(good, " // Kill stops a pod.", " // Kill ends a pod.", 1))
		}, killPatch + " does not apply"},
		"a message without trailers": {func() {
			f.write("patches/v1.36/"+killPatch, strings.Replace(good, "Forwarded: no\n", "", 1))
		}, "no Forwarded: trailer"},
		"another table": {func() { f.write("patches/README.md", readme) }, "its table is not that of the series; run make generate"},
		"no markers":    {func() { f.write("patches/README.md", "# Patches\n") }, "it needs the two lines"},
	} {
		t.Run(name, func(t *testing.T) {
			f.write("patches/v1.36/"+killPatch, good)
			f.write("patches/README.md", readme)
			_ = os.Remove(f.path("patches", "v1.36", "stray.patch"))
			require.NoError(t, f.GenerateReadme(io.Discard))
			_, err := verify(f)
			require.NoError(t, err)
			tc.spoil()
			_, err = verify(f)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestSeriesGivesTheGuardedTreeOnAnUpstreamCheckout(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	f.write("patches/v1.36/tests/pkg/kubelet/hooks_test.go", "package kubelet\n")
	u := f.upstream()
	dir, err := f.WriteSeries(ctx, u, io.Discard)
	require.NoError(t, err)
	mails, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	require.NoError(t, err)
	names := make([]string, len(mails))
	for i, m := range mails {
		names[i] = filepath.Base(m)
	}
	require.Equal(t, []string{
		"0001-kubelet-add-the-guard-package.patch",
		"0002-kubelet-keep-protected-pods-in-SyncPod.patch",
		"0003-" + killPatch,
		"0004-kubelet-test-the-hooks-of-the-guard.patch",
	}, names)

	// A checkout as upstream has it: its own go.mod, its staging directories.
	checkout := t.TempDir()
	for name, content := range fakeUpstream() {
		file := filepath.Join(checkout, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = checkout
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=u", "GIT_AUTHOR_EMAIL=u@u", "GIT_COMMITTER_NAME=u", "GIT_COMMITTER_EMAIL=u@u")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	git("init", "-q")
	git("add", "-A", "-f")
	git("commit", "-q", "-m", "upstream")
	git(append([]string{"am", "-q"}, mails...)...)

	guarded, _ := f.prepare(Guarded)
	got, want := snapshot(t, checkout), snapshot(t, guarded)
	for name := range got {
		if strings.HasPrefix(name, ".git/") {
			delete(got, name)
		}
	}
	upstream := fakeUpstream()
	for _, name := range []string{"go.mod", "go.sum", "go.work"} {
		want[name] = upstream[name]
	}
	require.Equal(t, want, got)

	again := snapshot(t, dir)
	_, err = f.WriteSeries(ctx, u, io.Discard)
	require.NoError(t, err)
	require.Equal(t, again, snapshot(t, dir))
}
