package vulncheck

import (
	"errors"
	"fmt"
	"io"
	"maps"
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
	// Versions are the minor versions of the kubelets with the finding, for example 1.36. Empty
	// means each one.
	Versions []string `json:"versions"`
	// Verdict is not-linked, not-affected or affected.
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
}

// readVerdicts reads verdicts.yaml. Unknown fields and incomplete or repeated entries are errors.
// supported are the minor versions that can be scanned.
func readVerdicts(file string, supported []string) ([]verdict, error) {
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
		case len(v.Versions) > 0 && v.In != inKubelet:
			return nil, fmt.Errorf("%s: verdicts[%d].versions: they are for the kubelet", file, i)
		}
		covered := v.Versions
		switch {
		case v.In == inPrograms:
			covered = []string{""}
		case len(covered) == 0:
			covered = supported
		}
		for _, kube := range covered {
			where := finding{in: v.In, kube: kube}.where()
			switch {
			case v.In == inKubelet && !slices.Contains(supported, kube):
				return nil, fmt.Errorf("%s: verdicts[%d].versions: %q is none of %v", file, i, kube, supported)
			case seen[v.ID+where]:
				return nil, fmt.Errorf("%s: verdicts[%d]: %s in %s is listed twice", file, i, v.ID, where)
			}
			seen[v.ID+where] = true
		}
	}
	return list.Verdicts, nil
}

// covers reports whether a verdict is on findings in the kubelet of a minor version, or, with the
// empty one, in the programs.
func (v verdict) covers(kube string) bool {
	return len(v.Versions) == 0 || slices.Contains(v.Versions, kube)
}

// judge prints each finding with its verdict. kubelets are the functions of the scanned kubelets,
// by their minor version.
func judge(findings []finding, verdicts []verdict, kubelets map[string]functions, out io.Writer) error {
	var problems []error
	found := make([][]finding, len(verdicts))
	for _, f := range findings {
		there := linked(f, kubelets)
		i := slices.IndexFunc(verdicts, func(v verdict) bool { return v.ID == f.id && v.In == f.in && v.covers(f.kube) })
		if i < 0 {
			problems = append(problems, fmt.Errorf("no verdict: %s; functions: %v", describe(f), there))
			continue
		}
		found[i] = append(found[i], f)
		v := verdicts[i]
		if v.Module != f.module {
			problems = append(problems, fmt.Errorf("verdict of %s in %s: it is for module %s, and the finding in %s", v.ID, f.where(), v.Module, f.module))
		}
		if v.Verdict == notLinked && len(there) > 0 {
			problems = append(problems, fmt.Errorf("verdict of %s in %s: it is %s, but in the binary are %v", v.ID, f.where(), notLinked, there))
		}
	}
	counts := map[string]int{}
	for i, v := range verdicts {
		// A verdict is out of date when one of its versions does not have the finding any more.
		scanned := []string{""}
		if v.In == inKubelet {
			scanned = slices.Sorted(maps.Keys(kubelets))
		}
		for _, kube := range scanned {
			if v.covers(kube) && !slices.ContainsFunc(found[i], func(f finding) bool { return f.kube == kube }) {
				problems = append(problems, fmt.Errorf("verdict of %s in %s: it was not found; remove the verdict, or limit its versions", v.ID, finding{in: v.In, kube: kube}.where()))
			}
		}
		if len(found[i]) == 0 {
			continue
		}
		counts[v.Verdict]++
		fmt.Fprintf(out, "%s\n  %s: %s\n", describe(found[i]...), v.Verdict, strings.TrimSpace(v.Why))
	}
	fmt.Fprintf(out, "%d verdicts: %d affected, %d not affected, %d not linked\n",
		counts[affected]+counts[notAffected]+counts[notLinked], counts[affected], counts[notAffected], counts[notLinked])
	return errors.Join(problems...)
}

// describe returns the same finding in several places as one text.
func describe(found ...finding) string {
	var places []string
	for _, f := range found {
		place := f.where() + " with " + f.version
		if f.fixed != "" {
			place += " (fixed in " + f.fixed + ")"
		}
		places = append(places, place)
	}
	return fmt.Sprintf("%s, %s: %s in %s", found[0].id, found[0].summary, found[0].module, strings.Join(places, ", "))
}

// linked returns the vulnerable functions of a finding that are there: in the source all, in a
// kubelet those that it has.
func linked(f finding, kubelets map[string]functions) []function {
	if f.in != inKubelet {
		return f.functions
	}
	var there []function
	for _, vulnerable := range f.functions {
		if kubelets[f.kube].has(vulnerable) {
			there = append(there, vulnerable)
		}
	}
	return there
}
