// Package vm runs a test program in an emulated machine: Debian with systemd on a
// pure cgroup v2 hierarchy, whatever hierarchy this machine has. Nothing of it needs
// hardware virtualization or a registry; what it needs from this machine is root
// (for the file system), debootstrap, mke2fs and qemu.
//
// The program runs in the machine (Run), or outside, with a machine that runs its scripts
// and is connected to a network here (Boot). The latter emulates less.
//
// Emulation is several times slower than the machine. The waits of the suites need
// not know: the guest's clock counts instructions, so that for the guest time passes
// slower while it works, and as fast as here while it waits.
package vm
