package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// sha256Of returns the checksum of a file, in hexadecimal.
func sha256Of(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// checksumsOf returns the checksums of files.
func checksumsOf(dir string, files []string) (map[string]string, error) {
	sums := map[string]string{}
	for _, name := range files {
		sum, err := sha256Of(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		sums[name] = sum
	}
	return sums, nil
}

// writeChecksums writes SHA256SUMS, as sha256sum --check reads it.
func writeChecksums(dir string, files []string) error {
	sums, err := checksumsOf(dir, files)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, name := range sortedKeys(sums) {
		fmt.Fprintf(&text, "%s  %s\n", sums[name], name)
	}
	return os.WriteFile(filepath.Join(dir, checksumsFile), text.Bytes(), 0o644)
}

var checksumLine = regexp.MustCompile(`^([0-9a-f]{64})  ([^/\\]+)$`)

// checkChecksums compares the files of a folder with SHA256SUMS: all of these, with these
// checksums, and no other but the signatures.
func checkChecksums(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		// A link may be to a file that is another one tomorrow.
		if !e.Type().IsRegular() {
			return nil, fmt.Errorf("%s: not a file, but %v", e.Name(), e.Type())
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, checksumsFile))
	if err != nil {
		return nil, err
	}
	want := map[string]string{}
	var problems []error
	for i, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		m := checksumLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%s: line %d is not a checksum and the name of a file: %q", checksumsFile, i+1, line)
		}
		if _, twice := want[m[2]]; twice {
			return nil, fmt.Errorf("%s: %s is listed twice", checksumsFile, m[2])
		}
		want[m[2]] = m[1]
	}
	for _, name := range sortedKeys(want) {
		sum, err := sha256Of(filepath.Join(dir, name))
		switch {
		case errors.Is(err, os.ErrNotExist):
			problems = append(problems, fmt.Errorf("%s: it is missing", name))
		case err != nil:
			problems = append(problems, err)
		case sum != want[name]:
			problems = append(problems, fmt.Errorf("%s: SHA-256 %s, in %s %s", name, sum, checksumsFile, want[name]))
		}
	}
	unlisted := []string{checksumsFile, checksumsSignatureFile, provenanceSignatureFile}
	for _, e := range entries {
		if _, listed := want[e.Name()]; !listed && !slices.Contains(unlisted, e.Name()) {
			problems = append(problems, fmt.Errorf("%s: not in %s", e.Name(), checksumsFile))
		}
	}
	return want, errors.Join(problems...)
}

// checkFiles compares the names of the files with those of the release.
func checkFiles(r Release, sums map[string]string) error {
	var problems []error
	files := r.Files()
	for _, name := range files {
		if _, there := sums[name]; !there {
			problems = append(problems, fmt.Errorf("%s: it is missing", name))
		}
	}
	for _, name := range sortedKeys(sums) {
		if !slices.Contains(files, name) {
			problems = append(problems, fmt.Errorf("%s: not a file of release %s for Kubernetes %v", name, r.Version, r.KubeVersions))
		}
	}
	return errors.Join(problems...)
}
