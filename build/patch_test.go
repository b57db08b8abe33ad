package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const samplePatch = `From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Kubelet Guard <noreply@kubelet-guard.io>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] kubelet: keep protected pods that vanish from the API source and
 stay with them

The key may be lost.

A second paragraph: with a colon.

Forwarded: not-needed
Drop-When: upstream keeps a pod until its deletion
 was observed
Size-Justification: one concern

diff --git a/pkg/kubelet/config/config.go b/pkg/kubelet/config/config.go
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/pkg/kubelet/config/config.go
+++ b/pkg/kubelet/config/config.go
@@ -10,4 +10,5 @@ func merge() {
 context
--- removed, although it looks like a header
+++ added
++ added, too
 context
 context
@@ -30 +31,2 @@ func other() {
-one
+two
+three
diff --git a/pkg/kubelet/glue.go b/pkg/kubelet/glue.go
new file mode 100644
index 0000000000000000000000000000000000000000..3333333333333333333333333333333333333333
--- /dev/null
+++ b/pkg/kubelet/glue.go
@@ -0,0 +1,2 @@
+package kubelet
+
`

func TestParsePatch(t *testing.T) {
	got, err := ParsePatch("a.patch", []byte(samplePatch))
	require.NoError(t, err)
	var places []string
	for _, h := range got.changes {
		places = append(places, h.File+" "+h.Function)
	}
	require.Equal(t, []string{
		"pkg/kubelet/config/config.go merge",
		"pkg/kubelet/config/config.go other",
		"pkg/kubelet/glue.go ",
	}, places)
	require.Equal(t, []string{"context", "-- removed, although it looks like a header", "context", "context"}, got.changes[0].before)
	require.Equal(t, []string{"context", "++ added", "+ added, too", "context", "context"}, got.changes[0].after)
	require.Equal(t, []string{"package kubelet", ""}, got.changes[2].after)
	got.changes = nil
	require.Equal(t, Patch{
		Name:    "a.patch",
		Data:    []byte(samplePatch),
		Subject: "kubelet: keep protected pods that vanish from the API source and stay with them",
		Body:    "The key may be lost.\n\nA second paragraph: with a colon.",
		Trailers: map[string]string{
			"Forwarded":          "not-needed",
			"Drop-When":          "upstream keeps a pod until its deletion was observed",
			"Size-Justification": "one concern",
		},
		Files: []FileChange{
			{Path: "pkg/kubelet/config/config.go", Added: 4, Removed: 2},
			{Path: "pkg/kubelet/glue.go", Added: 2, New: true},
		},
	}, got)
	require.Equal(t, 6, got.Added())
	require.Equal(t, 2, got.Removed())
	require.Equal(t, 6, got.UpstreamLines(), "lines of a new file are no upstream lines")
}

func TestParsePatchRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ data, want string }{
		"a bare diff":  {"diff --git a/x b/x\n", "not in the form of git format-patch"},
		"no subject":   {strings.Replace(samplePatch, "Subject: [PATCH] kubelet", "Topic: kubelet", 1), "no subject"},
		"no change":    {samplePatch[:strings.Index(samplePatch, "diff --git")], "changes nothing"},
		"a cut hunk":   {strings.TrimSuffix(samplePatch, "+package kubelet\n+\n"), "fragment"},
		"a rename":     {samplePatch + "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n", "x: hooks do not rename, copy or remove files"},
		"a broken one": {strings.Replace(samplePatch, "@@ -30 +31,2 @@", "@@ -30 @@", 1), "invalid fragment header"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePatch("a.patch", []byte(tc.data))
			require.ErrorContains(t, err, "a.patch: ")
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestPatchName(t *testing.T) {
	for subject, want := range map[string]string{
		"kubelet: keep protected pods (that vanish)": "kubelet-keep-protected-pods-that-vanish.patch",
		"cm/cpumanager: don't  release":              "cm-cpumanager-don-t-release.patch",
		"kubelet: " + strings.Repeat("long ", 20):    "kubelet-" + strings.Repeat("long-", 11) + "long.patch",
	} {
		require.Equal(t, want, patchName(subject), subject)
	}
}

func TestLint(t *testing.T) {
	good := Patch{
		Name: "kubelet-keep-pods.patch", Subject: "kubelet: keep pods", Body: "They must not be lost.",
		Trailers: map[string]string{"Forwarded": "no", "Drop-When": "never"},
		Files:    []FileChange{{Path: "a.go", Added: 20, Removed: 5}},
	}
	require.Empty(t, good.lint())
	for name, tc := range map[string]struct {
		change func(*Patch)
		want   string
	}{
		"area missing":         {func(p *Patch) { p.Subject, p.Name = "keep pods", "keep-pods.patch" }, `write it as "area: what the patch does"`},
		"full stop":            {func(p *Patch) { p.Subject = "kubelet: keep pods." }, "without a full stop"},
		"long subject":         {func(p *Patch) { p.Subject += strings.Repeat(" and more", 10); p.Name = patchName(p.Subject) }, "at most 76"},
		"another file name":    {func(p *Patch) { p.Name = "a.patch" }, "the file name of this subject is kubelet-keep-pods.patch"},
		"no body":              {func(p *Patch) { p.Body = "" }, "explain why the hook is needed"},
		"no Forwarded":         {func(p *Patch) { p.Trailers = map[string]string{"Drop-When": "never"} }, "no Forwarded: trailer"},
		"an unclear Forwarded": {func(p *Patch) { p.Trailers = map[string]string{"Drop-When": "never", "Forwarded": "maybe"} }, `Forwarded: "maybe" is neither a link`},
		"an empty Drop-When":   {func(p *Patch) { p.Trailers = map[string]string{"Forwarded": "no", "Drop-When": ""} }, `Drop-When: "" is no change of upstream`},
		"a Drop-When of ours": {func(p *Patch) {
			p.Trailers = map[string]string{"Forwarded": "no", "Drop-When": "the guard is given up"}
		}, "is no change of upstream; name the change"},
		"too large": {func(p *Patch) { p.Files = []FileChange{{Path: "a.go", Added: 26}} }, "changes 26 upstream lines, more than 25"},
		"a test":    {func(p *Patch) { p.Files = []FileChange{{Path: "a_test.go", Added: 1, New: true}} }, "in-tree tests belong in patches/tests/"},
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			tc.change(&p)
			errs := p.lint()
			require.Len(t, errs, 1)
			require.ErrorContains(t, errs[0], tc.want)
		})
	}
	large := good
	large.Files = []FileChange{{Path: "a.go", Added: 100}, {Path: "b.go", Added: 100, New: true}}
	large.Trailers = map[string]string{"Forwarded": "no", "Drop-When": "never", "Size-Justification": "moved as a block"}
	require.Empty(t, large.lint())
}

func TestLoadSeriesRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	s, err := LoadSeries(dir)
	require.NoError(t, err, "no series file is an empty series")
	require.Empty(t, s.Patches)

	write("a.patch", samplePatch)
	write("b.patch", samplePatch)
	write("series", "# order\n\na.patch\n")
	s, err = LoadSeries(dir)
	require.NoError(t, err)
	require.Len(t, s.Patches, 1)
	unlisted, err := s.Unlisted()
	require.NoError(t, err)
	require.Equal(t, []string{"b.patch"}, unlisted)

	for content, want := range map[string]string{
		"a.patch\na.patch\n": "series:2: a.patch is listed twice",
		"c.patch\n":          "series:1: open ",
		"../a.patch\n":       `series:1: "../a.patch" is not the name of a .patch file`,
		"notes.txt\n":        `series:1: "notes.txt" is not the name of a .patch file`,
	} {
		write("series", content)
		_, err := LoadSeries(dir)
		require.ErrorContains(t, err, want)
	}
}
