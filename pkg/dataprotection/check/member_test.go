package check

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersionsOfEtcd(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]Result{
		"3.4.30": Problem, "3.4.31": Warning, "3.5.0": Problem, "3.5.12": Problem, "3.5.13": Warning, "3.6.0": Warning, "3.6.13": Warning,
		"3.6.14": OK, "3.6.16": OK, "3.7.0-rc.0": Warning, "3.7.0": Warning, "3.7.1": OK, "4.0.0": OK, "": Unknown, "new": Unknown,
	} {
		result, detail, remedy := judgeVersion(version)
		require.Equal(t, want, result, version)
		require.Contains(t, detail, version)
		require.Equal(t, result == Problem || result == Warning, remedy != "", version)
	}
	var list List
	list.AddMembers([]Member{{Endpoint: "https://a", Version: "3.6.16"}, {Endpoint: "https://b", Err: errors.New("connection refused")}})
	require.Equal(t, 1, list.Problems())
	require.Equal(t, Check{Name: "etcd", Result: OK, Detail: "https://a: version 3.6.16"}, list[0])
	require.Contains(t, list[1].Detail, "https://b does not respond: connection refused")
}
