package vulncheck

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// The verdicts.
const (
	// notLinked: no vulnerable function is in the binary. This is checked.
	notLinked = "not-linked"
	// notAffected: the vulnerable code is there, but not reached in the vulnerable way.
	notAffected = "not-affected"
	// affected: it is reached, and accepted for the given reason.
	affected = "affected"
)

// verdict is an entry of verdicts.yaml.
type verdict struct {
	ID string `json:"id"`
	// In is what was scanned: kubelet or programs.
	In     string `json:"in"`
	Module string `json:"module"`
	// Verdict is not-linked, not-affected or affected.
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
}

// readVerdicts reads verdicts.yaml. Unknown fields and incomplete or repeated entries are errors.
func readVerdicts(file string) ([]verdict, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list struct {
		Verdicts []verdict `json:"verdicts"`
	}
	if err := yaml.UnmarshalStrict(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	seen := map[string]bool{}
	for i, v := range list.Verdicts {
		switch {
		case v.ID == "" || v.Module == "" || v.Why == "":
			return nil, fmt.Errorf("%s: verdicts[%d]: id, module and why are all required", file, i)
		case v.In != inKubelet && v.In != inPrograms:
			return nil, fmt.Errorf("%s: verdicts[%d].in: %q is neither %s nor %s", file, i, v.In, inKubelet, inPrograms)
		case !slices.Contains([]string{notLinked, notAffected, affected}, v.Verdict):
			return nil, fmt.Errorf("%s: verdicts[%d].verdict: %q is none of %s, %s and %s", file, i, v.Verdict, notLinked, notAffected, affected)
		case v.Verdict == notLinked && v.In != inKubelet:
			return nil, fmt.Errorf("%s: verdicts[%d].verdict: %s is for the kubelet; in source, govulncheck finds only what is called", file, i, notLinked)
		case seen[v.ID+v.In]:
			return nil, fmt.Errorf("%s: verdicts[%d]: %s in %s is listed twice", file, i, v.ID, v.In)
		}
		seen[v.ID+v.In] = true
	}
	return list.Verdicts, nil
}

// judge prints each finding with its verdict.
func judge(findings []finding, verdicts []verdict, kubelets []functions, out io.Writer) error {
	var problems []error
	used := map[verdict]bool{}
	counts := map[string]int{}
	for _, f := range findings {
		text := fmt.Sprintf("%s in %s: %s %s, %s", f.id, f.in, f.module, f.version, f.summary)
		if f.fixed != "" {
			text += " (fixed in " + f.fixed + ")"
		}
		i := slices.IndexFunc(verdicts, func(v verdict) bool { return v.ID == f.id && v.In == f.in })
		if i < 0 {
			problems = append(problems, fmt.Errorf("no verdict: %s; functions: %v", text, linked(f, kubelets)))
			continue
		}
		v := verdicts[i]
		if !used[v] {
			fmt.Fprintf(out, "%s\n  %s: %s\n", text, v.Verdict, strings.TrimSpace(v.Why))
			counts[v.Verdict]++
		}
		used[v] = true
		if v.Module != f.module {
			problems = append(problems, fmt.Errorf("verdict of %s in %s: it is for module %s, and the finding in %s", v.ID, v.In, v.Module, f.module))
		}
		if there := linked(f, kubelets); v.Verdict == notLinked && len(there) > 0 {
			problems = append(problems, fmt.Errorf("verdict of %s in %s: it is %s, but in the binary are %v", v.ID, v.In, notLinked, there))
		}
	}
	for _, v := range verdicts {
		if !used[v] {
			problems = append(problems, fmt.Errorf("verdict of %s in %s: it was not found; remove the verdict", v.ID, v.In))
		}
	}
	fmt.Fprintf(out, "%d findings: %d affected, %d not affected, %d not linked\n",
		len(used), counts[affected], counts[notAffected], counts[notLinked])
	return errors.Join(problems...)
}

// linked returns the vulnerable functions of a finding that are there: in the source all, in
// kubelets those that one of them has.
func linked(f finding, kubelets []functions) []function {
	if f.in != inKubelet {
		return f.functions
	}
	var there []function
	for _, vulnerable := range f.functions {
		if slices.ContainsFunc(kubelets, func(table functions) bool { return table.has(vulnerable) }) {
			there = append(there, vulnerable)
		}
	}
	return there
}
