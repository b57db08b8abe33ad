package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Export writes the commits of the work tree back to the patch directory. It
// refuses uncommitted changes and changes to copied files. A series that would
// become shorter needs allowFewer: a tree that was reset by mistake must not
// delete patches. In-tree tests that were edited in the work tree are written to
// tests/.
func (e EditTree) Export(ctx context.Context, allowFewer bool) error {
	if !e.exists() {
		return fmt.Errorf("%s does not exist; run guard-build patches apply first", e.repo.rel(e.Dir()))
	}
	if op := e.unfinished(); op != "" {
		return fmt.Errorf("%s has an unfinished %s", e.repo.rel(e.Dir()), op)
	}
	dirty, err := e.git.run(ctx, "status", "--porcelain")
	if err != nil {
		return err
	}
	if dirty != "" {
		return fmt.Errorf("%s has uncommitted changes:\n%s\ncommit them (git commit, or git commit --fixup and git rebase --autosquash); a new in-tree test goes to %s/tests/ instead",
			e.repo.rel(e.Dir()), indent(dirty), e.repo.rel(e.repo.patchDir(e.upstream)))
	}
	if err := e.exportTests(); err != nil {
		return err
	}
	now, err := e.series(ctx)
	if err != nil {
		return err
	}
	before, err := LoadSeries(now.Dir)
	if err != nil && !allowFewer {
		return fmt.Errorf("%w; fix it, or export over it with --allow-fewer", err)
	}
	if len(now.Patches) == 0 {
		return fmt.Errorf("%s has no commits on top of %s; exporting it would delete every patch", e.repo.rel(e.Dir()), refBase)
	}
	if len(now.Patches) < len(before.Patches) && !allowFewer {
		return fmt.Errorf("%s has %d commits, the series has %d patches; missing: %s. If that is meant, add --allow-fewer",
			e.repo.rel(e.Dir()), len(now.Patches), len(before.Patches), strings.Join(missing(before, now), ", "))
	}
	changed, err := now.write()
	if err != nil {
		return err
	}
	if _, err := e.git.run(ctx, "update-ref", refExported, "HEAD"); err != nil {
		return err
	}
	if _, err := os.Stat(e.repo.readmeFile()); err == nil {
		if err := e.repo.GenerateReadme(e.out); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.out, "%s: %d patches", e.repo.rel(now.Dir), len(now.Patches))
	if len(changed) == 0 {
		fmt.Fprintln(e.out, ", nothing changed")
		return nil
	}
	fmt.Fprintf(e.out, "; changed:\n%s\n", indent(strings.Join(changed, "\n")))
	return nil
}

// missing returns the patches whose names now lacks.
func missing(before, now Series) []string {
	have := map[string]bool{}
	for _, p := range now.Patches {
		have[p.Name] = true
	}
	var out []string
	for _, p := range before.Patches {
		if !have[p.Name] {
			out = append(out, p.Name)
		}
	}
	return out
}

// series renders the commits of the tree as patches.
func (e EditTree) series(ctx context.Context) (Series, error) {
	return renderSeries(ctx, e.git, refBase, "HEAD", e.repo.patchDir(e.upstream))
}

// renderSeries renders the commits of a range as patches, oldest first.
func renderSeries(ctx context.Context, g gitTree, from, to, dir string) (Series, error) {
	s := Series{Dir: dir}
	merges, err := g.run(ctx, "rev-list", "--merges", from+".."+to)
	if err != nil {
		return s, err
	}
	if merges != "" {
		return s, fmt.Errorf("%s has merge commits; a series is linear: rebase them", g.dir)
	}
	list, err := g.run(ctx, "rev-list", "--reverse", from+".."+to)
	if err != nil {
		return s, err
	}
	seen := map[string]string{}
	for _, commit := range strings.Fields(list) {
		data, err := formatPatch(ctx, g, commit)
		if err != nil {
			return s, err
		}
		subject, err := g.run(ctx, "show", "-s", "--format=%s", commit)
		if err != nil {
			return s, err
		}
		p, err := ParsePatch(patchName(subject), data)
		if err != nil {
			return s, fmt.Errorf("commit %q: %w", subject, err)
		}
		for _, f := range p.Files {
			if strings.HasPrefix(f.Path, GuardDir+"/") {
				return s, fmt.Errorf("commit %q changes %s; the guard package is ordinary source of this repository: change it there, take it out of the commit, and run guard-build patches sync", subject, f.Path)
			}
		}
		if other, twice := seen[p.Name]; twice {
			return s, fmt.Errorf("commits %q and %q both give %s; give them different subjects", other, subject, p.Name)
		}
		seen[p.Name] = subject
		s.Patches = append(s.Patches, p)
	}
	return s, nil
}

// formatPatch renders one commit. Every option that a git configuration could change
// is set here.
func formatPatch(ctx context.Context, g gitTree, commit string) ([]byte, error) {
	data, err := g.raw(ctx, nil, "format-patch", "-1", "--stdout", "--zero-commit", "--no-signature", "--full-index",
		"--no-stat", "-N", "--no-renames", "--no-attach", "--no-thread", "--no-cover-letter", "-U3",
		"--src-prefix=a/", "--dst-prefix=b/", commit)
	if err != nil {
		return nil, err
	}
	return anonymous(data), nil
}

// anonymous gives a patch the project's own author and date. Who wrote it and when
// is in this repository's history; in the patch, both would change bytes whenever
// a commit is amended by somebody else.
func anonymous(patch []byte) []byte {
	header, rest, _ := bytes.Cut(patch, []byte("\n\n"))
	var out []string
	skipping := false
	for _, line := range strings.Split(string(header), "\n") {
		switch {
		case strings.HasPrefix(line, "From: "):
			out = append(out, "From: "+toolName+" <"+toolEmail+">")
			skipping = true
			continue
		case strings.HasPrefix(line, "Date: "):
			out = append(out, "Date: "+mailDate)
			skipping = true
			continue
		case skipping && strings.HasPrefix(line, " "):
			continue
		}
		skipping = false
		out = append(out, line)
	}
	return append([]byte(strings.Join(out, "\n")+"\n\n"), rest...)
}

// exportTests copies in-tree tests that were edited in the work tree to their home,
// and refuses edits of the guard package.
func (e EditTree) exportTests() error {
	edited, err := e.editedOverlay()
	if err != nil {
		return err
	}
	files, err := e.repo.addedFiles(e.upstream)
	if err != nil {
		return err
	}
	m, err := e.readManifest()
	if err != nil {
		return err
	}
	for _, name := range edited {
		data, err := os.ReadFile(e.file(name))
		if err != nil {
			return err
		}
		current, have := files[name]
		if have && string(current) == string(data) {
			continue
		}
		home := filepath.Join(e.repo.patchDir(e.upstream), "tests", filepath.FromSlash(name))
		switch {
		case inGuard(name):
			return fmt.Errorf("%s/%s was edited in the work tree; %s", e.repo.rel(e.Dir()), name, e.home(name))
		case m[name] == "" && !have: // New in the work tree.
		case !have || hexSum(current) != m[name]:
			return fmt.Errorf("%s changed both in the work tree and in %s; merge the two by hand", name, e.repo.rel(home))
		}
		if _, err := writeFile(home, data, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(e.out, "%s: written from the work tree\n", e.repo.rel(home))
	}
	return e.Sync()
}
