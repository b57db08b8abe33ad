// Package checktest has what the tests of preflight and access share.
package checktest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/dataprotection/check"
)

// RequireOnly requires that one check of a report is not OK: the named one, with the result and
// the words.
func RequireOnly(t *testing.T, report check.List, name string, result check.Result, words, test string) {
	t.Helper()
	var found []check.Check
	for _, c := range report {
		if c.Result != check.OK {
			found = append(found, c)
		}
	}
	require.Len(t, found, 1, test)
	require.Equal(t, name, found[0].Name, test)
	require.Equal(t, result, found[0].Result, test)
	require.Contains(t, found[0].Detail, words, test)
}
