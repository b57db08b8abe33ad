package version

import (
	"reflect"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestOfARelease(t *testing.T) {
	release = Release("0.1.0", "bec867d4")
	defer func() { release = "" }()
	assert.Equal(t, "0.1.0, commit bec867d4, "+runtime.Version(), String())
}

func TestOfABuildFromSource(t *testing.T) {
	for want, info := range map[string]debug.BuildInfo{
		"v0.1.0":                        {Main: debug.Module{Version: "v0.1.0"}},
		"unknown":                       {},
		"(devel)":                       {Main: debug.Module{Version: "(devel)"}},
		"commit 0123456789ab":           {Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "false"}}},
		"commit 0123456789ab, modified": {Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}},
	} {
		assert.Equal(t, want, fromSource(&info))
	}
}

// The linker sets nothing, without a word, when the path of the variable is another.
func TestTheVariableIsOfThisPackage(t *testing.T) {
	type local struct{}
	assert.Equal(t, Variable, reflect.TypeFor[local]().PkgPath()+".release")
}
