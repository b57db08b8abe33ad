package build

import (
	"context"
	"crypto/sha1"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Export writes the commits of the work tree back to the patch directory, and changes of the
// guard package and the in-tree tests to their places. It refuses uncommitted changes. A
// series that would become shorter needs allowFewer: a tree that was reset by mistake must
// not delete patches.
func (e EditTree) Export(ctx context.Context, allowFewer bool) error {
	before, err := LoadSeries(e.repo.patchDir(e.upstream))
	if err != nil && !allowFewer {
		return fmt.Errorf("%w; fix it, or export over it with --allow-fewer", err)
	}
	now, err := e.series(ctx, before, allowFewer)
	if err != nil {
		return err
	}
	if err := e.exportAdded(ctx); err != nil {
		return err
	}
	changed, err := now.write()
	if err != nil {
		return err
	}
	if _, err := e.git.run(ctx, "update-ref", e.exported(), "HEAD"); err != nil {
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

// series returns the series of a tree without work that is no commit yet. One that is empty,
// or shorter than before, is an error.
func (e EditTree) series(ctx context.Context, before Series, allowFewer bool) (Series, error) {
	if err := e.finished(ctx); err != nil {
		return Series{}, err
	}
	now, err := e.git.render(ctx, "HEAD", e.repo.patchDir(e.upstream))
	if err == nil && len(now.Patches) == 0 {
		err = fmt.Errorf("%s has no commits on top of upstream's files; exporting it would delete every patch", e.repo.rel(e.Dir()))
	}
	if err != nil || len(now.Patches) >= len(before.Patches) || allowFewer {
		return now, err
	}
	var missing []string
	for _, p := range before.Patches {
		if !now.has(p.Name) {
			missing = append(missing, p.Name)
		}
	}
	return now, fmt.Errorf("%s has %d commits, the series has %d patches; missing: %s. If that is meant, add --allow-fewer",
		e.repo.rel(e.Dir()), len(now.Patches), len(before.Patches), strings.Join(missing, ", "))
}

// home is the place of an added file in this checkout.
func (e EditTree) home(name string) string {
	if inGuard(name) {
		return e.repo.path(filepath.FromSlash(name))
	}
	return e.repo.hookTest(e.upstream, name)
}

// exportAdded writes the guard package and the in-tree tests that changed in the work tree
// since the last apply or export. One that changed in the checkout, too, is an error.
func (e EditTree) exportAdded(ctx context.Context) error {
	old, err := e.git.addedIn(ctx, e.exported())
	if err != nil {
		return err
	}
	now, err := e.git.addedIn(ctx, "HEAD")
	if err != nil {
		return err
	}
	all := maps.Clone(old)
	maps.Copy(all, now)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		home, hash := e.home(name), ""
		if data, err := os.ReadFile(home); err == nil {
			hash = fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(data), data)))
		}
		switch {
		case now[name] == old[name] || now[name] == hash:
			continue
		case hash != old[name]:
			return fmt.Errorf("%s changed both in the work tree and in %s; merge the two by hand", name, e.repo.rel(home))
		case now[name] == "":
			err = os.Remove(home)
		default:
			err = replaceFile(home, func(tmp string) error { return copyFile(e.file(name), tmp, 0o644) })
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(e.out, "%s: written from the work tree\n", e.repo.rel(home))
	}
	return nil
}
