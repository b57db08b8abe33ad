// Package debian makes root file systems of Debian for the machines and node images
// that tests run on. It needs root, because a file system has owners and devices.
package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Suite is the Debian of all root file systems, the last whose systemd runs on cgroup
// v1 as well as on v2.
const (
	Suite  = "bookworm"
	mirror = "http://deb.debian.org/debian"
)

// Tree says what a root file system is made of.
type Tree struct {
	// Packages are installed in addition to those that every Debian has.
	Packages []string
	// Files are added afterwards, by path without a leading slash.
	Files map[string]File
	// Links are symbolic links with their targets, added after the files. They replace
	// what is there.
	Links map[string]string
	// Remove are patterns (filepath.Match) of files that are removed, before files and
	// links are added. A pattern may match nothing.
	Remove []string
}

// File is a file of a root file system. It belongs to root.
type File struct {
	Content []byte
	Mode    fs.FileMode
}

// Fingerprint identifies the content of the tree, and what else the caller makes of it.
// Versions of packages are no part of it.
func (t Tree) Fingerprint(others ...any) string {
	// A map is printed in the order of its keys.
	sum := sha256.Sum256(fmt.Append(nil, append([]any{Suite, mirror, t.Packages, t.Files, t.Links, t.Remove}, others...)...))
	return hex.EncodeToString(sum[:6])
}

// Make makes the tree in a folder, which must be absent or empty. It takes about a
// minute, and log receives what the installation prints.
func (t Tree) Make(ctx context.Context, dir string, log io.Writer) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("making a root file system needs root")
	}
	if err := RequirePrograms(map[string]string{"debootstrap": "debootstrap", "chroot": "coreutils"}); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := Run(ctx, log, "debootstrap", "--variant=minbase", "--include="+strings.Join(t.Packages, ","), Suite, dir, mirror); err != nil {
		return err
	}
	for _, pattern := range t.Remove {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("pattern %s: %w", pattern, err)
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	for path, file := range t.Files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, file.Content, file.Mode); err != nil {
			return err
		}
		// The mode of WriteFile is for new files, and less the umask.
		if err := os.Chmod(path, file.Mode); err != nil {
			return err
		}
	}
	for path, target := range t.Links {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	}
	return nil
}

// Install installs packages into a tree that Make made.
func Install(ctx context.Context, dir string, log io.Writer, packages ...string) error {
	return Run(ctx, log, append([]string{"chroot", dir, "env", "DEBIAN_FRONTEND=noninteractive",
		"apt-get", "install", "--yes", "--quiet", "--no-install-recommends"}, packages...)...)
}

// RequirePrograms is an error that names the Debian packages to install, if a program
// is not in the search path.
func RequirePrograms(packageOf map[string]string) error {
	var missing []string
	for program, name := range packageOf {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	return nil
}

// Run runs a program whose output goes to log. What it mounts ends with it: debootstrap,
// when it is interrupted, leaves the machine's /proc in the tree.
func Run(ctx context.Context, log io.Writer, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	return nil
}
