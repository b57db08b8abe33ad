package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// versionTimeout bounds a program that is run with --version.
const versionTimeout = 20 * time.Second

// binaries are those that were found in a folder: as files, in archives, packages and images.
type binaries struct {
	// dir has one copy of each.
	dir   string
	found map[Binary]foundBinary
}

type foundBinary struct {
	file, sha256 string
	// where it was found first.
	where string
}

func newBinaries(dir string) *binaries { return &binaries{dir: dir, found: map[Binary]foundBinary{}} }

// add takes a binary that is at some place of the folder. An error names the place, if the
// binary has another content at an earlier one.
func (all *binaries) add(b Binary, where string, content io.Reader) error {
	first, again := all.found[b]
	hash := sha256.New()
	if again {
		if _, err := io.Copy(hash, content); err != nil {
			return err
		}
		if sum := hex.EncodeToString(hash.Sum(nil)); sum != first.sha256 {
			return fmt.Errorf("another binary than in %s: SHA-256 %s, there %s", first.where, sum, first.sha256)
		}
		return nil
	}
	file := filepath.Join(all.dir, b.Name())
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.MultiWriter(f, hash), content); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	all.found[b] = foundBinary{file, hex.EncodeToString(hash.Sum(nil)), where}
	return nil
}

// checkBinary compares what a binary contains with its name: program, platform and version. A
// program of this machine's platform must report the version, too.
func checkBinary(ctx context.Context, r Release, b Binary, f foundBinary) error {
	info, err := buildinfo.ReadFile(f.file)
	if err != nil {
		return fmt.Errorf("%s: not a binary of Go: %w", f.where, err)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if info.Path != sources[b.Program] {
		return fmt.Errorf("%s: it is %s, and should be %s", f.where, info.Path, sources[b.Program])
	}
	if on := (Platform{settings["GOOS"], settings["GOARCH"]}); on != b.Platform {
		return fmt.Errorf("%s: it is for %s/%s, and should be for %s/%s", f.where, on.OS, on.Arch, b.OS, b.Arch)
	}
	if info.GoVersion != r.GoVersion {
		return fmt.Errorf("%s: it is by %s, and should be by %s", f.where, info.GoVersion, r.GoVersion)
	}
	want := r.reported(b)
	data, err := os.ReadFile(f.file)
	if err != nil {
		return err
	}
	if !bytes.Contains(data, []byte(want)) {
		return fmt.Errorf("%s: it does not contain its version, %q", f.where, want)
	}
	if b.Platform != (Platform{runtime.GOOS, runtime.GOARCH}) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, f.file, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w: %s", f.where, err, bytes.TrimSpace(out))
	}
	reported := strings.TrimSpace(string(out))
	if b.Program == Kubelet && reported != "Kubernetes "+want || !strings.Contains(reported, want) {
		return fmt.Errorf("%s: it reports %q, and should report the version %q", f.where, reported, want)
	}
	return nil
}

// addKubelets adds the kubelets, which are files of the folder.
func addKubelets(dir string, r Release, all *binaries) error {
	for _, b := range r.Binaries() {
		if b.Program != Kubelet {
			continue
		}
		f, err := os.Open(filepath.Join(dir, b.Name()))
		if err != nil {
			return err
		}
		err = all.add(b, b.Name(), f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", b.Name(), err)
		}
	}
	return nil
}
