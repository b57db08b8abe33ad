// Package vulncheck compares what govulncheck finds with verdicts.yaml: each finding needs a
// verdict, and each verdict a finding.
//
// Two things are scanned: the source of this repository's programs, where govulncheck follows
// the calls, and the built kubelets. A kubelet is stripped, so govulncheck assumes that each
// function of a module is in it; the binary's own table of functions shows which are not.
package vulncheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"kubelet-guard.io/build"
)

// What is scanned.
const (
	inKubelet  = "kubelet"
	inPrograms = "programs"
)

// Checker scans a checkout.
type Checker struct {
	Repo build.Repo
	// Upstreams are those of the kubelets.
	Upstreams []build.Upstream
	// Database is a folder of OSV files, as in data/osv of the repository golang/vulndb. Empty
	// means the public database, which needs the internet.
	Database string
}

// finding is a vulnerability in what is scanned.
type finding struct {
	id, in string
	// kube is the minor version of the kubelet, for example 1.36; empty in the programs.
	kube                   string
	summary                string
	module, version, fixed string
	// functions are the vulnerable ones.
	functions []function
}

// where names what has the finding: programs, or kubelet 1.36.
func (f finding) where() string { return strings.TrimSpace(f.in + " " + f.kube) }

// Check scans, and prints each finding with its verdict. It fails for a finding without a
// verdict and for a verdict that does not fit.
func (c Checker) Check(ctx context.Context, out io.Writer) error {
	supported, err := c.Repo.Supported()
	if err != nil {
		return err
	}
	verdicts, err := readVerdicts(c.verdictsFile(), minors(supported))
	if err != nil {
		return err
	}
	scanner, err := c.scanner(ctx, out)
	if err != nil {
		return err
	}
	findings, err := scanner.scan(ctx, finding{in: inPrograms}, "./cmd/...", "./pkg/...")
	if err != nil {
		return err
	}
	kubelets := map[string]functions{}
	for _, u := range c.Upstreams {
		kubelet, err := c.kubelet(ctx, u, out)
		if err != nil {
			return err
		}
		kube := minors([]build.Upstream{u})[0]
		found, err := scanner.scan(ctx, finding{in: inKubelet, kube: kube}, "-mode=binary", kubelet)
		if err != nil {
			return err
		}
		findings = append(findings, found...)
		if kubelets[kube], err = readFunctions(kubelet); err != nil {
			return err
		}
	}
	return judge(findings, verdicts, kubelets, out)
}

// minors are the minor versions as verdicts.yaml has them.
func minors(upstreams []build.Upstream) []string {
	var all []string
	for _, u := range upstreams {
		all = append(all, strings.TrimPrefix(u.Minor(), "v"))
	}
	return all
}

func (c Checker) verdictsFile() string {
	return filepath.Join(c.Repo.Root, "build", "vulncheck", "verdicts.yaml")
}

// kubelet builds the guarded kubelet for this machine, and returns its file.
func (c Checker) kubelet(ctx context.Context, u build.Upstream, out io.Writer) (string, error) {
	err := c.Repo.Build(ctx, u, "", []build.Binary{build.Kubelet}, out)
	return c.Repo.ResultFile(u, "", build.Kubelet), err
}

// scanner is govulncheck with a database.
type scanner struct {
	program, database, dir string
}

func (c Checker) scanner(ctx context.Context, out io.Writer) (scanner, error) {
	s := scanner{program: filepath.Join(c.Repo.Root, "_output", "bin", "govulncheck"), dir: c.Repo.Root}
	if c.Database != "" {
		folder, err := filepath.Abs(c.Database)
		if err != nil {
			return s, err
		}
		// govulncheck reports nothing at all for a folder without files of the right form.
		if files, err := filepath.Glob(filepath.Join(folder, "GO-*.json")); err != nil || len(files) == 0 {
			return s, fmt.Errorf("%s has no vulnerabilities (GO-*.json): name the folder data/osv of the repository golang/vulndb", c.Database)
		}
		s.database = "file://" + filepath.ToSlash(folder)
	}
	return s, c.Repo.BuildTool(ctx, "govulncheck", "golang.org/x/vuln/cmd/govulncheck", s.program, out)
}

// scan runs govulncheck. at is what is scanned, and part of each finding.
func (s scanner) scan(ctx context.Context, at finding, args ...string) ([]finding, error) {
	all := []string{"-format=json"}
	if s.database != "" {
		all = append(all, "-db="+s.database)
	}
	cmd := exec.CommandContext(ctx, s.program, append(all, args...)...)
	cmd.Dir = s.dir
	var problems strings.Builder
	cmd.Stderr = &problems
	data, err := cmd.Output()
	if err != nil {
		hint := ""
		if s.database == "" {
			hint = "\nThe public database of vulnerabilities needs the internet. Without it, name a folder: VULNDB=…/vulndb/data/osv, of the repository golang/vulndb."
		}
		return nil, fmt.Errorf("govulncheck %s: %w: %s%s", strings.Join(args, " "), err, problems.String(), hint)
	}
	return parse(at, data)
}

// message is the part of govulncheck's JSON stream that is used: a vulnerability, or the place
// of one.
type message struct {
	OSV *struct {
		ID      string `json:"id"`
		Summary string `json:"summary"`
	} `json:"osv"`
	Finding *struct {
		OSV          string `json:"osv"`
		FixedVersion string `json:"fixed_version"`
		Trace        []struct {
			Module   string `json:"module"`
			Version  string `json:"version"`
			Package  string `json:"package"`
			Receiver string `json:"receiver"`
			Function string `json:"function"`
		} `json:"trace"`
	} `json:"finding"`
}

// parse returns the vulnerabilities of which a function is called, or may be in a binary. The
// others are in modules that are required for something else.
func parse(at finding, stream []byte) ([]finding, error) {
	decoder := json.NewDecoder(bytes.NewReader(stream))
	summaries, found := map[string]string{}, map[string]*finding{}
	// modules are what the database names. For a function, govulncheck names any of the modules
	// that its package could be of: another one in each run.
	modules := map[string]finding{}
	for {
		var m message
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("output of govulncheck: %w", err)
		}
		if m.OSV != nil {
			summaries[m.OSV.ID] = m.OSV.Summary
		}
		if m.Finding == nil || len(m.Finding.Trace) == 0 {
			continue
		}
		first := m.Finding.Trace[0]
		if before, again := modules[m.Finding.OSV]; first.Package == "" && (!again || first.Module < before.module) {
			modules[m.Finding.OSV] = finding{module: first.Module, version: first.Version, fixed: m.Finding.FixedVersion}
		}
		if first.Function == "" {
			continue
		}
		f := found[m.Finding.OSV]
		if f == nil {
			f = &finding{id: m.Finding.OSV, in: at.in, kube: at.kube}
			found[f.id] = f
		}
		if vulnerable := (function{first.Package, first.Receiver, first.Function}); !slices.Contains(f.functions, vulnerable) {
			f.functions = append(f.functions, vulnerable)
		}
	}
	var all []finding
	for id, f := range found {
		f.summary = summaries[id]
		f.module, f.version, f.fixed = modules[id].module, modules[id].version, modules[id].fixed
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b finding) int { return strings.Compare(a.id, b.id) })
	return all, nil
}
