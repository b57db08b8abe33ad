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
{"finding":{"osv":"GO-1","trace":[{"module":"example.com","version":"v9.9.9","package":"example.com/m/a","receiver":"*T","function":"G"}]}}
{"finding":{"osv":"GO-1","fixed_version":"v0.2.0","trace":[{"module":"example.com/m","version":"v0.1.0","package":"example.com/m/b","function":"F"},{"module":"kubelet-guard.io","package":"kubelet-guard.io/cmd","function":"main"}]}}
{"finding":{"osv":"GO-2","trace":[{"module":"example.com/m","version":"v0.1.0"}]}}
`

var looping = finding{
	id: "GO-1", in: inKubelet, kube: "1.36", summary: "Infinite loop", module: "example.com/m", version: "v0.1.0", fixed: "v0.2.0",
	functions: []function{{"example.com/m/a", "*T", "G"}, {"example.com/m/b", "", "F"}},
}

func TestFindingsAreOfFunctions(t *testing.T) {
	found, err := parse(finding{in: inKubelet, kube: "1.36"}, []byte(stream))
	require.NoError(t, err)
	assert.Equal(t, []finding{looping}, found)
	_, err = parse(finding{in: inKubelet}, []byte("govulncheck: no go.mod"))
	assert.ErrorContains(t, err, "output of govulncheck")
}

func TestVerdicts(t *testing.T) {
	older := looping
	older.kube, older.version = "1.35", "v0.0.9"
	inSource := looping
	inSource.in, inSource.kube = inPrograms, ""
	fits := verdict{"GO-1", inKubelet, "example.com/m", nil, affected, "the next patch release has it"}
	but := func(change func(v *verdict)) verdict {
		v := fits
		change(&v)
		return v
	}
	isNotLinked := but(func(v *verdict) { v.Verdict = notLinked })
	for name, c := range map[string]struct {
		found    []finding
		verdicts []verdict
		linked   string
		want     string
	}{
		"it fits": {[]finding{older, looping}, []verdict{fits}, "example.com/m/b.F",
			"GO-1, Infinite loop: example.com/m in kubelet 1.35 with v0.0.9 (fixed in v0.2.0), kubelet 1.36 with v0.1.0 (fixed in v0.2.0)\n  affected: the next patch release has it\n" +
				"1 verdicts: 1 affected, 0 not affected, 0 not linked\n"},
		"in programs": {[]finding{inSource}, []verdict{but(func(v *verdict) { v.In = inPrograms })}, "", "example.com/m in programs with v0.1.0"},
		"none": {[]finding{looping}, nil, "example.com/m/b.F",
			"no verdict: GO-1, Infinite loop: example.com/m in kubelet 1.36 with v0.1.0 (fixed in v0.2.0); functions: [example.com/m/b.F]"},
		"for something else": {[]finding{looping}, []verdict{but(func(v *verdict) { v.In = inPrograms })}, "", "no verdict: GO-1"},
		"for another module": {[]finding{older, looping}, []verdict{but(func(v *verdict) { v.Module = "example.com/n" })}, "",
			"in kubelet 1.36: it is for module example.com/n, and the finding in example.com/m"},
		"not linked":             {[]finding{older, looping}, []verdict{isNotLinked}, "example.com/m/b.F2", "1 not linked"},
		"not linked, but it is":  {[]finding{older, looping}, []verdict{isNotLinked}, "example.com/m/a.(*T).G", "in kubelet 1.36: it is not-linked, but in the binary are [example.com/m/a.*T.G]"},
		"not found any more":     {[]finding{older, looping}, []verdict{fits, {"GO-3", inKubelet, "example.com/m", nil, affected, "why"}}, "", "verdict of GO-3 in kubelet 1.35: it was not found; remove the verdict"},
		"not found in programs":  {nil, []verdict{but(func(v *verdict) { v.In = inPrograms })}, "", "verdict of GO-1 in programs: it was not found"},
		"of one version":         {[]finding{looping}, []verdict{but(func(v *verdict) { v.Versions = []string{"1.36"} })}, "", "example.com/m in kubelet 1.36 with v0.1.0"},
		"not found in a version": {[]finding{looping}, []verdict{fits}, "", "verdict of GO-1 in kubelet 1.35: it was not found; remove the verdict, or limit its versions"},
		"of another version":     {[]finding{looping}, []verdict{but(func(v *verdict) { v.Versions = []string{"1.37"} })}, "", "no verdict: GO-1"},
		"of a version that is not scanned": {[]finding{older, looping}, []verdict{fits, {"GO-3", inKubelet, "example.com/m", []string{"1.37"}, affected, "why"}}, "",
			"1 verdicts: 1 affected"},
		"another one for each version": {[]finding{older, looping}, []verdict{
			but(func(v *verdict) { v.Versions = []string{"1.35"}; v.Verdict = notLinked }),
			but(func(v *verdict) { v.Versions = []string{"1.36"} }),
		}, "example.com/m/b.F", "2 verdicts: 1 affected, 0 not affected, 1 not linked"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			// The older kubelet has no vulnerable function.
			err := judge(c.found, c.verdicts, map[string]functions{"1.35": {"example.com/m.Other": true}, "1.36": {c.linked: true}}, &out)
			if err != nil {
				assert.ErrorContains(t, err, c.want)
				return
			}
			assert.Contains(t, out.String(), c.want)
		})
	}
}

func TestIncompleteVerdictsAreRefused(t *testing.T) {
	for want, text := range map[string]string{
		"verdicts[0]: id, module and why are all required":                "- {id: GO-1, in: kubelet, module: m, verdict: affected}",
		`verdicts[0].in: "webhook" is neither kubelet nor programs`:       "- {id: GO-1, in: webhook, module: m, verdict: affected, why: w}",
		`verdicts[0].verdict: "fine" is none of not-linked, not-affected`: "- {id: GO-1, in: kubelet, module: m, verdict: fine, why: w}",
		"verdicts[0].verdict: not-linked is for the kubelet":              "- {id: GO-1, in: programs, module: m, verdict: not-linked, why: w}",
		"verdicts[1]: GO-1 in kubelet 1.36 is listed twice":               "- {id: GO-1, in: kubelet, module: m, versions: ['1.36'], verdict: affected, why: w}\n- {id: GO-1, in: kubelet, module: m, verdict: affected, why: w}",
		"verdicts[1]: GO-1 in programs is listed twice":                   "- {id: GO-1, in: programs, module: m, verdict: affected, why: w}\n- {id: GO-1, in: programs, module: m, verdict: affected, why: w}",
		`verdicts[0].versions: "1.34" is none of [1.35 1.36]`:             "- {id: GO-1, in: kubelet, module: m, versions: ['1.34'], verdict: affected, why: w}",
		"verdicts[0].versions: they are for the kubelet":                  "- {id: GO-1, in: programs, module: m, versions: ['1.36'], verdict: affected, why: w}",
		"verdicts[1]: GO-1 in kubelet 1.35 is listed twice":               "- {id: GO-1, in: kubelet, module: m, verdict: affected, why: w}\n- {id: GO-1, in: kubelet, module: m, verdict: affected, why: w}",
		`unknown field "because"`:                                         "- {id: GO-1, in: kubelet, module: m, verdict: affected, because: w}",
	} {
		file := filepath.Join(t.TempDir(), "verdicts.yaml")
		require.NoError(t, os.WriteFile(file, []byte("verdicts:\n"+text+"\n"), 0o644))
		_, err := readVerdicts(file, []string{"1.35", "1.36"})
		assert.ErrorContains(t, err, want)
	}
	repo, err := build.FindRepo(".")
	require.NoError(t, err)
	supported, err := repo.Supported()
	require.NoError(t, err)
	_, err = readVerdicts(Checker{Repo: repo}.verdictsFile(), minors(supported))
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
