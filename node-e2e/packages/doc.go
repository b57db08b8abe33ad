// Package packages tests the deb and the rpm on a machine with systemd, dpkg and
// rpm that nobody needs afterwards: the emulated machine of package vm, or a
// container. Its test installs units, a container runtime and packages on the
// machine that it runs on, and therefore needs a flag to run.
package packages
