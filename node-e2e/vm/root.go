package vm

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Debian of the emulated machine. rpm is there for the test of the package.
const (
	suite    = "bookworm"
	mirror   = "http://deb.debian.org/debian"
	packages = "systemd-sysv,kmod,iproute2,initramfs-tools,rpm"
	kernel   = "linux-image-amd64"
	// diskSize is what the image may grow to; unused blocks are holes.
	diskSize = 6 << 30
)

// initialModules are what the kernel needs to find its root file system.
const initialModules = "virtio_pci\nvirtio_blk\next4\n"

// unwanted are units that would run at some time during a test, or that would fight
// for the console.
var unwanted = []string{
	"serial-getty@ttyS0.service", "getty.target", "apt-daily.timer", "apt-daily-upgrade.timer",
	"dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer",
}

//go:embed guest
var guest embed.FS

// root is the root file system with its kernel.
type root struct {
	image, kernel, initrd string
}

// prepareRoot makes the root file system, or returns the one that an earlier run made
// of the same parts. It takes two minutes and needs root, because the file system has
// owners and devices.
func prepareRoot(ctx context.Context, dir string, log io.Writer) (root, error) {
	if runtime.GOARCH != "amd64" {
		return root{}, fmt.Errorf("the emulated machine is an amd64 one and runs the programs that are built here, for %s", runtime.GOARCH)
	}
	files, err := guestFiles()
	if err != nil {
		return root{}, err
	}
	dir = filepath.Join(dir, "root-"+fingerprint(files))
	made := root{
		image:  filepath.Join(dir, "disk.img"),
		kernel: filepath.Join(dir, "vmlinuz"),
		initrd: filepath.Join(dir, "initrd.img"),
	}
	// The disk comes last.
	if _, err := os.Stat(made.image); err == nil {
		return made, nil
	}
	if os.Geteuid() != 0 {
		return root{}, fmt.Errorf("making a root file system needs root")
	}
	if err := requirePrograms(map[string]string{"debootstrap": "debootstrap", "mke2fs": "e2fsprogs", "chroot": "coreutils"}); err != nil {
		return root{}, err
	}
	tree := filepath.Join(dir, "tree")
	if err := os.RemoveAll(dir); err != nil {
		return root{}, err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return root{}, err
	}
	fmt.Fprintf(log, "Making the root file system of Debian %s in %s\n", suite, dir)
	if err := run(ctx, log, "debootstrap", "--variant=minbase", "--include="+packages, suite, tree, mirror); err != nil {
		return root{}, err
	}
	for path, content := range files {
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(path, ".sh") {
			mode = 0o755
		}
		path = filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return root{}, err
		}
		if err := os.WriteFile(path, content, mode); err != nil {
			return root{}, err
		}
	}
	units := filepath.Join(tree, "etc", "systemd", "system")
	links := map[string]string{filepath.Join(units, "multi-user.target.wants", "guest.service"): "../guest.service"}
	for _, unit := range unwanted {
		links[filepath.Join(units, unit)] = os.DevNull
	}
	for link, target := range links {
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return root{}, err
		}
		if err := os.Symlink(target, link); err != nil {
			return root{}, err
		}
	}
	// The kernel goes last: its installation makes the initial file system.
	if err := run(ctx, log, "chroot", tree, "env", "DEBIAN_FRONTEND=noninteractive",
		"apt-get", "install", "--yes", "--quiet", "--no-install-recommends", kernel); err != nil {
		return root{}, err
	}
	for pattern, to := range map[string]string{"vmlinuz-*": made.kernel, "initrd.img-*": made.initrd} {
		found, err := filepath.Glob(filepath.Join(tree, "boot", pattern))
		if err != nil || len(found) != 1 {
			return root{}, fmt.Errorf("%d files like %s in %s/boot, must be one", len(found), pattern, tree)
		}
		if err := os.Rename(found[0], to); err != nil {
			return root{}, err
		}
	}
	partial := made.image + ".partial"
	if err := run(ctx, log, "mke2fs", "-q", "-t", "ext4", "-d", tree, partial, fmt.Sprint(diskSize>>10)); err != nil {
		return root{}, err
	}
	if err := os.RemoveAll(tree); err != nil {
		return root{}, err
	}
	return made, os.Rename(partial, made.image)
}

// guestFiles are the files of ours in the root file system, by path.
func guestFiles() (map[string][]byte, error) {
	files := map[string][]byte{
		"etc/fstab":                        []byte("/dev/vda / ext4 defaults 0 1\n"),
		"etc/hostname":                     []byte("guest\n"),
		"etc/hosts":                        []byte("127.0.0.1 localhost guest\n"),
		"etc/initramfs-tools/conf.d/guest": []byte("MODULES=list\n"),
		"etc/initramfs-tools/modules":      []byte(initialModules),
	}
	for name, path := range map[string]string{"guest.sh": "guest.sh", "guest.service": "etc/systemd/system/guest.service"} {
		content, err := guest.ReadFile("guest/" + name)
		if err != nil {
			return nil, err
		}
		files[path] = content
	}
	return files, nil
}

// fingerprint identifies what a root file system is made of.
func fingerprint(files map[string][]byte) string {
	// A map is printed in the order of its keys.
	sum := sha256.Sum256(fmt.Append(nil, suite, mirror, packages, kernel, diskSize, unwanted, files))
	return hex.EncodeToString(sum[:6])
}

// requirePrograms is an error that names the Debian packages to install.
func requirePrograms(packageOf map[string]string) error {
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

func run(ctx context.Context, log io.Writer, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	return nil
}
