package build

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
)

const (
	// maxUpstreamLines is how many upstream lines a hook may change. What is larger
	// is logic, and belongs in the guard package.
	maxUpstreamLines = 25
	// maxSubject keeps a subject on one line of a mail header and of git log.
	maxSubject = 76
)

var subjectForm = regexp.MustCompile(`^[a-z][a-z0-9/_-]*: [a-z0-9].*[^.]$`)

// lint checks the message and the size of a patch.
func (p Patch) lint() []error {
	var errs []error
	fail := func(broken bool, format string, args ...any) {
		if broken {
			errs = append(errs, fmt.Errorf(p.Name+": "+format, args...))
		}
	}
	fail(!subjectForm.MatchString(p.Subject), "subject %q: write it as \"area: what the patch does\", in lower case and without a full stop", p.Subject)
	fail(len(p.Subject) > maxSubject, "subject has %d characters; at most %d", len(p.Subject), maxSubject)
	fail(p.Name != patchName(p.Subject), "the file name of this subject is %s; run guard-build patches export", patchName(p.Subject))
	fail(p.Body == "", "no body; explain why the hook is needed")
	forwarded := p.Trailers["Forwarded"]
	fail(forwarded == "", "no Forwarded: trailer in the last paragraph; give a link, no, or not-needed")
	fail(forwarded != "" && forwarded != "no" && forwarded != "not-needed" && !strings.HasPrefix(forwarded, "https://"),
		"Forwarded: %q is neither a link, no nor not-needed", forwarded)
	drop, ok := p.Trailers["Drop-When"]
	fail(ok && (drop == "" || strings.Contains(drop, "the guard")),
		"Drop-When: %q is no change of upstream; name the change with its issue or KEP, or the patch that this one goes with, or leave the line out", drop)
	fail(p.UpstreamLines() > maxUpstreamLines && p.Trailers["Size-Justification"] == "",
		"changes %d upstream lines, more than %d; move logic into the guard package, or add a Size-Justification: trailer", p.UpstreamLines(), maxUpstreamLines)
	for _, f := range p.Files {
		fail(f.New && strings.HasSuffix(f.Path, "_test.go"), "adds %s; in-tree tests belong in patches/tests/", f.Path)
	}
	return errs
}

// VerifyPatches checks a patch directory: the series file and the directory agree,
// each patch explains itself and is small, the series applies without fuzz, is
// byte for byte what an export would write, and patches/README.md has its table.
// It prints the size of each patch to out and returns all defects together. When
// an export would write other bytes, the right ones are left in
// _output/patches/<minor>.
func (r Repo) VerifyPatches(ctx context.Context, u Upstream, out io.Writer) error {
	series, err := LoadSeries(r.patchDir(u))
	if err != nil {
		return err
	}
	var errs []error
	unlisted, err := series.Unlisted()
	if err != nil {
		return err
	}
	for _, name := range unlisted {
		errs = append(errs, fmt.Errorf("%s: the series file does not list it; add it there, or remove it", name))
	}
	for _, p := range series.Patches {
		errs = append(errs, p.lint()...)
	}
	errs = append(errs, r.verifyReadme(), r.verifyReexport(ctx, u, series, out))
	series.printSizes(out)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s:\n%w", r.rel(series.Dir), err)
	}
	fmt.Fprintf(out, "%s: %d patches apply to %s without fuzz and export to the same bytes\n", r.rel(series.Dir), len(series.Patches), u.Version)
	return nil
}

// verifyReexport applies the series strictly, as commits, and exports it again. In the
// result each hook has to be found, so that its tests can be proved without it.
func (r Repo) verifyReexport(ctx context.Context, u Upstream, series Series, out io.Writer) error {
	src, err := r.source(u, Guarded)
	if err != nil {
		return err
	}
	commit, err := r.commit(ctx, src, out)
	if err != nil {
		return err
	}
	content := func(name string) ([]byte, error) {
		return r.git().raw(ctx, nil, "show", commit+":"+name)
	}
	if err := series.hooksComeOut(content); err != nil {
		return err
	}
	again, err := r.git().render(ctx, commit, series.Dir)
	if err != nil {
		return err
	}
	var differ []string
	for i, p := range series.Patches {
		if i >= len(again.Patches) || p.Name != again.Patches[i].Name || !bytes.Equal(p.Data, again.Patches[i].Data) {
			differ = append(differ, p.Name)
		}
	}
	if len(differ) == 0 && len(again.Patches) == len(series.Patches) {
		return nil
	}
	again.Dir = r.path("_output", "patches", u.Minor())
	if err := os.RemoveAll(again.Dir); err != nil {
		return err
	}
	if _, err := again.write(); err != nil {
		return err
	}
	return fmt.Errorf("not what an export writes: %s; the right bytes are in %s: use guard-build patches apply and export instead of editing patches",
		strings.Join(differ, ", "), r.rel(again.Dir))
}

// printSizes writes a table of the patches with their sizes.
func (s Series) printSizes(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "added\tremoved\tupstream\tfiles\t  patch")
	var total [4]int
	row := func(counts [4]int, name string) {
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t  %s\n", counts[0], counts[1], counts[2], counts[3], name)
	}
	for _, p := range s.Patches {
		counts := [4]int{p.Added(), p.Removed(), p.UpstreamLines(), len(p.Files)}
		row(counts, p.Name)
		for i, n := range counts {
			total[i] += n
		}
	}
	row(total, fmt.Sprintf("total of %d patches", len(s.Patches)))
	w.Flush()
}

func (r Repo) readmeFile() string { return r.path("patches", "README.md") }

// markers enclose the generated table of one minor version in patches/README.md.
func markers(u Upstream) (start, end string) {
	return "<!-- BEGIN " + u.Minor() + ": generated by make generate; do not edit -->", "<!-- END " + u.Minor() + " -->"
}

// verifyReadme compares patches/README.md with what GenerateReadme would write.
func (r Repo) verifyReadme() error {
	have, want, err := r.renderReadme()
	if err == nil && !bytes.Equal(have, want) {
		err = fmt.Errorf("%s: its table is not that of the series; run make generate", r.rel(r.readmeFile()))
	}
	return err
}

// GenerateReadme writes the patch tables into patches/README.md.
func (r Repo) GenerateReadme(out io.Writer) error {
	_, want, err := r.renderReadme()
	if err != nil {
		return err
	}
	changed, err := writeFile(r.readmeFile(), want)
	if changed {
		fmt.Fprintf(out, "%s: written\n", r.rel(r.readmeFile()))
	}
	return err
}

// renderReadme replaces what is between the markers of each supported version in
// patches/README.md.
func (r Repo) renderReadme() (have, want []byte, err error) {
	if have, err = os.ReadFile(r.readmeFile()); err != nil {
		return nil, nil, err
	}
	all, err := r.Supported()
	if err != nil {
		return nil, nil, err
	}
	text := string(have)
	for _, u := range all {
		start, end := markers(u)
		before, rest, ok := strings.Cut(text, start)
		_, after, both := strings.Cut(rest, end)
		if !ok || !both {
			return nil, nil, fmt.Errorf("%s: it needs the two lines %q and %q, between which the table of %s goes", r.rel(r.readmeFile()), start, end, u.Version)
		}
		series, err := LoadSeries(r.patchDir(u))
		if err != nil {
			return nil, nil, err
		}
		text = before + start + "\n" + series.markdown(u) + "\n" + end + after
	}
	return have, []byte(text), nil
}

// markdown renders the series as a table.
func (s Series) markdown(u Upstream) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| patch for %s | hooks | lines | why | drop when |\n|---|---|---:|---|---|\n", u.Version)
	cell := func(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
	added, removed := 0, 0
	for _, p := range s.Patches {
		var files []string
		for _, f := range p.Files {
			files = append(files, "`"+strings.TrimPrefix(f.Path, "pkg/kubelet/")+"`")
		}
		lines := fmt.Sprintf("+%d −%d", p.Added(), p.Removed())
		why := firstSentence(p.Body)
		if size := p.Trailers["Size-Justification"]; size != "" {
			why += " Size: " + size
		}
		fmt.Fprintf(&b, "| [%s](%s/%s) | %s | %s | %s | %s |\n",
			cell(p.Subject), u.Minor(), p.Name, strings.Join(files, ", "), lines, cell(why), cell(cmp.Or(p.Trailers["Drop-When"], "—")))
		added += p.Added()
		removed += p.Removed()
	}
	fmt.Fprintf(&b, "| **%d patches** | | **+%d −%d** | | |\n", len(s.Patches), added, removed)
	return b.String()
}

// firstSentence returns the start of a body up to its first full stop at the end
// of a word, or the first paragraph.
func firstSentence(body string) string {
	paragraph, _, _ := strings.Cut(body, "\n\n")
	text := strings.Join(strings.Fields(paragraph), " ")
	if i := strings.Index(text, ". "); i >= 0 {
		return text[:i+1]
	}
	return text
}
