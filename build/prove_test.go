package build

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const hookPatch = `From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Kubelet Guard <noreply@kubelet-guard.io>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: [PATCH] kubelet: ask before the kill

Forwarded: no
Drop-When: never

diff --git a/pkg/a/a.go b/pkg/a/a.go
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/pkg/a/a.go
+++ b/pkg/a/a.go
@@ -1,5 +1,6 @@
 package a
 
 import (
 	"fmt"
+	"k8s.io/kubernetes/pkg/kubelet/guard"
 )
@@ -7,5 +8,8 @@ import (
 func (m *manager) stop(pod string) bool {
 	fmt.Println(pod)
+	if guard.Refuse(pod, guard.Evicted) {
+		return false
+	}
 	return true
 }
 
@@ -13,3 +17,3 @@ func (m *manager) stop(pod string) bool {
 func list() []string {
-	return pods
+	return guard.FilterStoppable(pods)
 }
`

const hookedFile = `package a

import (
	"fmt"
	"k8s.io/kubernetes/pkg/kubelet/guard"
)

func (m *manager) stop(pod string) bool {
	fmt.Println(pod)
	if guard.Refuse(pod, guard.Evicted) {
		return false
	}
	return true
}

func list() []string {
	return guard.FilterStoppable(pods)
}
`

func parseHooks(t *testing.T) []Hook {
	t.Helper()
	p, err := ParsePatch("a.patch", []byte(hookPatch))
	require.NoError(t, err)
	hooks := Series{Patches: []Patch{p}}.Hooks()
	require.Len(t, hooks, 2, "the import is no hook")
	return hooks
}

func TestHooksNameTheirPlace(t *testing.T) {
	hooks := parseHooks(t)

	assert.Equal(t, "pkg/a/a.go stop: Refuse Evicted", hooks[0].String())
	assert.Equal(t, "pkg/a/a.go list: FilterStoppable", hooks[1].String())
}

func TestHookIsTakenOut(t *testing.T) {
	hooks := parseHooks(t)

	out, err := hooks[0].Without([]byte(hookedFile))
	require.NoError(t, err)
	assert.NotContains(t, string(out), "guard.Refuse")
	assert.Contains(t, string(out), "guard.FilterStoppable", "the other hook stays")
	assert.NotContains(t, string(out), "var _ = guard.Install", "the import is still used")

	out, err = hooks[1].Without(out)
	require.NoError(t, err)
	assert.Contains(t, string(out), "\treturn pods\n")
	assert.True(t, strings.HasSuffix(string(out), "\nvar _ = guard.Install\n"), "the import is kept in use")
}

func TestHookIsFoundWithChangedNeighbours(t *testing.T) {
	hooks := parseHooks(t)
	changed := strings.Replace(hookedFile, "fmt.Println(pod)", "fmt.Println(pod, 1)", 1)

	out, err := hooks[0].Without([]byte(changed))

	require.NoError(t, err)
	assert.NotContains(t, string(out), "guard.Refuse")
	assert.Contains(t, string(out), "fmt.Println(pod, 1)")
}

// The paragraph that a patch adds ends with a blank line, before which a later patch adds
// a line: the blank line above the paragraph has to do for both.
func TestHookIsFoundWithALaterHookInItsParagraph(t *testing.T) {
	const upstream = "package a\n\nfunc a() {\n\tbefore()\n\n\tafter()\n}\n"
	hook := Hook{
		before: []string{"\tbefore()", "", "\tafter()", "}"},
		after:  []string{"\tbefore()", "", "\tguard.Start()", "", "\tafter()", "}"},
	}
	const later = "\tguard.Limit()\n"

	out, err := hook.Without([]byte("package a\n\nfunc a() {\n\tbefore()\n\n\tguard.Start()\n" + later + "\n\tafter()\n}\n"))

	require.NoError(t, err)
	assert.Equal(t, "package a\n\nfunc a() {\n\tbefore()\n"+later+"\n\tafter()\n}\n", string(out))
	out, err = hook.Without([]byte("package a\n\nfunc a() {\n\tbefore()\n\n\tguard.Start()\n\n\tafter()\n}\n"))
	require.NoError(t, err)
	assert.Equal(t, upstream, string(out))
}

func TestHookThatIsNotThereOrTwice(t *testing.T) {
	hooks := parseHooks(t)

	_, err := hooks[0].Without([]byte("package a\n"))
	assert.ErrorContains(t, err, "is not in the guarded tree")

	_, err = hooks[0].Without([]byte(hookedFile + strings.TrimPrefix(hookedFile, "package a\n")))
	assert.ErrorContains(t, err, "2 times")
}

// What one function shares with another of the patch, an import for example, has to go
// with it.
func TestHookGoesWithItsNeighbours(t *testing.T) {
	p, err := ParsePatch("a.patch", []byte(hookPatch))
	require.NoError(t, err)
	changes := p.changes
	require.Len(t, changes, 3)
	assert.True(t, changes[0].importsOnly)
	assert.Equal(t, changes[1:2], changes[1].neighbours(changes, true))
	assert.Equal(t, changes, changes[1].neighbours(changes, false))
}
