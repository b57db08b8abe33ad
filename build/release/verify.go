package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Verify checks the folder of a release: that it is complete, has nothing else, and that its
// files fit together. With the file of a public key it starts with the signatures. Programs for
// this machine are run with --version. Errors name the file; out gets what was checked.
func Verify(ctx context.Context, dir, keyFile string, out io.Writer) error {
	if keyFile != "" {
		if err := checkSignatures(dir, keyFile); err != nil {
			return err
		}
	}
	sums, err := checkChecksums(dir)
	if err != nil {
		return err
	}
	r, subjects, err := readProvenance(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(checkFiles(r, sums), checkSubjects(subjects, sums)); err != nil {
		return err
	}
	if err := errors.Join(checkKrew(dir, r, sums), checkManifests(dir, r), checkNotes(dir, r)); err != nil {
		return err
	}
	count, err := verifyBinaries(ctx, dir, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: release %s for Kubernetes %v, commit %s: %d files and %d binaries are valid\n",
		dir, r.Version, r.KubeVersions, r.Commit, len(sums), count)
	if keyFile == "" {
		fmt.Fprintf(out, "Signatures were not verified: no key was given.\n")
	}
	return nil
}

// verifyBinaries finds the binaries in all files that have some, and checks each. It returns how
// many there are.
func verifyBinaries(ctx context.Context, dir string, r Release) (int, error) {
	copies, err := os.MkdirTemp("", "release-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(copies)
	all := newBinaries(copies)
	problems := []error{addKubelets(dir, r, all)}
	for _, p := range r.packages() {
		problems = append(problems, checkPackage(dir, p, all))
	}
	for _, i := range r.images() {
		problems = append(problems, checkImage(dir, r, i, all))
	}
	for _, b := range r.Binaries() {
		if _, there := archived[b.Program]; there {
			problems = append(problems, checkArchive(dir, b, all))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return 0, err
	}
	for _, b := range r.Binaries() {
		f, there := all.found[b]
		if !there {
			problems = append(problems, fmt.Errorf("%s: in no file of the folder", b.Name()))
			continue
		}
		problems = append(problems, checkBinary(ctx, r, b, f), checkSBOM(dir, b, f))
	}
	return len(all.found), errors.Join(problems...)
}
