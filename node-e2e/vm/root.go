package vm

import (
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"kubelet-guard.io/node-e2e/debian"
)

// rpm is there for the test of the package, dbus because nodes have it: kubelet and runtime
// have systemd make cgroups.
var packages = []string{"systemd-sysv", "dbus", "kmod", "iproute2", "initramfs-tools", "rpm"}

const (
	kernel = "linux-image-amd64"
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
	content, err := guestTree()
	if err != nil {
		return root{}, err
	}
	dir = filepath.Join(dir, "root-"+content.Fingerprint(kernel, diskSize))
	made := root{
		image:  filepath.Join(dir, "disk.img"),
		kernel: filepath.Join(dir, "vmlinuz"),
		initrd: filepath.Join(dir, "initrd.img"),
	}
	// The disk comes last.
	if _, err := os.Stat(made.image); err == nil {
		return made, nil
	}
	if err := debian.RequirePrograms(map[string]string{"mke2fs": "e2fsprogs"}); err != nil {
		return root{}, err
	}
	tree := filepath.Join(dir, "tree")
	if err := os.RemoveAll(dir); err != nil {
		return root{}, err
	}
	fmt.Fprintf(log, "Making the root file system of Debian %s in %s\n", debian.Suite, dir)
	if err := content.Make(ctx, tree, log); err != nil {
		return root{}, err
	}
	// The kernel goes last: its installation makes the initial file system.
	if err := debian.Install(ctx, tree, log, kernel); err != nil {
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
	if err := debian.Run(ctx, log, "mke2fs", "-q", "-t", "ext4", "-d", tree, partial, fmt.Sprint(diskSize>>10)); err != nil {
		return root{}, err
	}
	if err := os.RemoveAll(tree); err != nil {
		return root{}, err
	}
	return made, os.Rename(partial, made.image)
}

// guestTree is the root file system without its kernel.
func guestTree() (debian.Tree, error) {
	tree := debian.Tree{
		Packages: packages,
		Files: map[string]debian.File{
			"etc/fstab":                        {Content: []byte("/dev/vda / ext4 defaults 0 1\n"), Mode: 0o644},
			"etc/hostname":                     {Content: []byte("guest\n"), Mode: 0o644},
			"etc/hosts":                        {Content: []byte("127.0.0.1 localhost guest\n"), Mode: 0o644},
			"etc/initramfs-tools/conf.d/guest": {Content: []byte("MODULES=list\n"), Mode: 0o644},
			"etc/initramfs-tools/modules":      {Content: []byte(initialModules), Mode: 0o644},
		},
		Links: map[string]string{"etc/systemd/system/multi-user.target.wants/guest.service": "../guest.service"},
	}
	for name, file := range map[string]struct {
		path string
		mode fs.FileMode
	}{
		"guest.sh":      {"guest.sh", 0o755},
		"guest.service": {"etc/systemd/system/guest.service", 0o644},
	} {
		content, err := guest.ReadFile("guest/" + name)
		if err != nil {
			return debian.Tree{}, err
		}
		tree.Files[file.path] = debian.File{Content: content, Mode: file.mode}
	}
	for _, unit := range unwanted {
		tree.Links["etc/systemd/system/"+unit] = os.DevNull
	}
	return tree, nil
}
