package vulncheck

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/build"
)

const stream = `{"config":{"protocol_version":"v1.0.0"}}
{"osv":{"id":"GO-1","summary":"Infinite loop"}}
{"osv":{"id":"GO-2","summary":"In a module that is only required"}}
{"finding":{"osv":"GO-1","fixed_version":"v0.2.0","trace":[{"module":"example.com/m","version":"v0.1.0"}]}}
{"finding":{"osv":"GO-1","fixed_version":"v0.2.0","trace":[{"module":"example.com/m","version":"v0.1.0","package":"example.com/m/b"}]}}
{"finding":{"osv":"GO-1","fixed_version":"v0.2.0","trace":[{"module":"example.com/m","version":"v0.1.0","package":"example.com/m/b","function":"F"},{"module":"kubelet-guard.io","package":"kubelet-guard.io/cmd","function":"main"}]}}
{"finding":{"osv":"GO-1","fixed_version":"v0.2.0","trace":[{"module":"example.com/m","version":"v0.1.0","package":"example.com/m/a","receiver":"*T","function":"G"}]}}
{"finding":{"osv":"GO-2","trace":[{"module":"example.com/m","version":"v0.1.0"}]}}
`

var looping = finding{
	id: "GO-1", in: inKubelet, summary: "Infinite loop", module: "example.com/m", version: "v0.1.0", fixed: "v0.2.0",
	functions: []function{{"example.com/m/b", "", "F"}, {"example.com/m/a", "*T", "G"}},
}

func TestFindingsAreOfFunctions(t *testing.T) {
	found, err := parse(inKubelet, []byte(stream))
	require.NoError(t, err)
	assert.Equal(t, []finding{looping}, found)
	_, err = parse(inKubelet, []byte("govulncheck: no go.mod"))
	assert.ErrorContains(t, err, "output of govulncheck")
}

func TestVerdicts(t *testing.T) {
	fits := verdict{"GO-1", inKubelet, "example.com/m", affected, "the next patch release has it"}
	for name, c := range map[string]struct {
		verdicts []verdict
		linked   string
		want     string
	}{
		"it fits":                    {[]verdict{fits}, "example.com/m/b.F", ""},
		"none":                       {nil, "example.com/m/b.F", "no verdict: GO-1 in kubelet: example.com/m v0.1.0, Infinite loop (fixed in v0.2.0); functions: [example.com/m/b.F]"},
		"for something else":         {[]verdict{{"GO-1", inPrograms, "example.com/m", affected, "why"}}, "", "no verdict: GO-1 in kubelet"},
		"for another module":         {[]verdict{{"GO-1", inKubelet, "example.com/n", affected, "why"}}, "", "it is for module example.com/n, and the finding in example.com/m"},
		"not linked":                 {[]verdict{{"GO-1", inKubelet, "example.com/m", notLinked, "why"}}, "example.com/m/b.F2", ""},
		"not linked, but it is":      {[]verdict{{"GO-1", inKubelet, "example.com/m", notLinked, "why"}}, "example.com/m/a.(*T).G", "it is not-linked, but in the binary are [example.com/m/a.*T.G]"},
		"one that was not found too": {[]verdict{fits, {"GO-3", inKubelet, "example.com/m", affected, "why"}}, "", "verdict of GO-3 in kubelet: it was not found; remove the verdict"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := judge([]finding{looping, looping}, c.verdicts, []functions{nil, {c.linked: true}}, &out)
			if c.want != "" {
				assert.ErrorContains(t, err, c.want)
				return
			}
			require.NoError(t, err)
			assert.Contains(t, out.String(), "GO-1 in kubelet: example.com/m v0.1.0, Infinite loop (fixed in v0.2.0)\n")
			assert.Contains(t, out.String(), "\n1 findings: ")
		})
	}
}

func TestIncompleteVerdictsAreRefused(t *testing.T) {
	for want, text := range map[string]string{
		"verdicts[0]: id, module and why are all required":                "- {id: GO-1, in: kubelet, module: m, verdict: affected}",
		`verdicts[0].in: "webhook" is neither kubelet nor programs`:       "- {id: GO-1, in: webhook, module: m, verdict: affected, why: w}",
		`verdicts[0].verdict: "fine" is none of not-linked, not-affected`: "- {id: GO-1, in: kubelet, module: m, verdict: fine, why: w}",
		"verdicts[0].verdict: not-linked is for the kubelet":              "- {id: GO-1, in: programs, module: m, verdict: not-linked, why: w}",
		"verdicts[1]: GO-1 in kubelet is listed twice":                    "- {id: GO-1, in: kubelet, module: m, verdict: affected, why: w}\n- {id: GO-1, in: kubelet, module: m, verdict: affected, why: w}",
		`unknown field "because"`:                                         "- {id: GO-1, in: kubelet, module: m, verdict: affected, because: w}",
	} {
		file := filepath.Join(t.TempDir(), "verdicts.yaml")
		require.NoError(t, os.WriteFile(file, []byte("verdicts:\n"+text+"\n"), 0o644))
		_, err := readVerdicts(file)
		assert.ErrorContains(t, err, want)
	}
	repo, err := build.FindRepo(".")
	require.NoError(t, err)
	_, err = readVerdicts(Checker{Repo: repo}.verdictsFile())
	require.NoError(t, err)
}

func TestFunctionsOfABinary(t *testing.T) {
	table := parseFunctions([]byte("\x00main.main\x00example.com/m.F\x00example.com/m.(*P).G\x00example.com/m.V.G\x00example.com/m.S[...]\x00gopkg.in/yaml%2ev3.Unmarshal\x00"))
	for f, want := range map[function]bool{
		{"main", "", "main"}:                  true,
		{"example.com/m", "", "F"}:            true,
		{"example.com/m", "", "F2"}:           false,
		{"example.com/m", "*P", "G"}:          true,
		{"example.com/m", "P", "G"}:           true,
		{"example.com/m", "V", "G"}:           true,
		{"example.com/m", "", "G"}:            false,
		{"example.com/m", "", "S"}:            true,
		{"gopkg.in/yaml.v3", "", "Unmarshal"}: true,
		{"example.com/m", "", "*"}:            true,
		{"example.com", "", "*"}:              false,
	} {
		assert.Equal(t, want, table.has(f), f)
	}
	if runtime.GOOS != "linux" {
		t.Skip("the kubelet is for Linux")
	}
	own, err := os.Executable()
	require.NoError(t, err)
	table, err = readFunctions(own)
	require.NoError(t, err)
	assert.True(t, table.has(function{"encoding/json", "*Decoder", "Decode"}))
	assert.False(t, table.has(function{"golang.org/x/crypto/ssh", "", "*"}))
	_, err = readFunctions("verdicts.yaml")
	assert.Error(t, err)
}

func TestAFolderWithoutVulnerabilitiesIsNoDatabase(t *testing.T) {
	_, err := Checker{Repo: build.Repo{Root: t.TempDir()}, Database: t.TempDir()}.scanner(t.Context(), &bytes.Buffer{})
	assert.ErrorContains(t, err, "has no vulnerabilities (GO-*.json): name the folder data/osv of the repository golang/vulndb")
}
