// Package build makes the guarded kubelet: it takes the published Kubernetes
// module, the patch series and the guard package to prepared source trees, and
// those to binaries.
//
// It keeps four promises:
//
//   - The source is what the repository pins. The archive and the extracted
//     files are compared with patches/v1.NN/upstream.yaml whenever a tree is
//     made, and a difference stops the build.
//   - A tree is complete, and never changes. It is made under another name and then moved
//     to a path made of a hash of its content, so that a killed run costs another one
//     and never a kubelet with half of its hooks.
//   - Patches apply exactly. There is no fuzz, and a patch that is exported again
//     has the same bytes.
//   - Same input, same bytes. Binaries carry no time, no path and no host name.
//
// # Patches are commits
//
// The git repository _output/git has upstream's files of a version as a commit without a
// parent, and on top of it the guard package, each patch and the in-tree tests. The guarded
// tree is the last of these commits, and so is the work tree in which patches are edited.
// An export renders the commits as patches; a rebase carries them all to another version.
//
// # What is not made again
//
// Trees, programs and results are kept outside the checkout, in kubelet-guard of the user's cache
// folder or where KUBELET_GUARD_CACHE says, so that a fresh clone finds them. None of this
// can hide a red test or an old program:
//
//   - The path of a tree is a hash of everything in it: the pinned archive and module
//     files, each patch, each file of the guard package and of the in-tree tests. A changed
//     line is another path. A checksum of all files is compared whenever a tree is used.
//   - The result of a test comes from the go command, or the test runs. The go command
//     keeps the result of a pass with a hash of the test program, its arguments, and the
//     environment variables and files that it read. It knows a file by path, size and
//     time. The time is the same in all trees, but a file with other content has another
//     path. Failures are not kept. What the go command does not see, the kernel of the
//     machine for one, should make no difference to these tests.
//   - The go command builds every program, also one that the cache has: it compares the ID
//     in the program with compiler, flags and sources, and only the linking is saved. A
//     program that is not whole is not offered to it.
//   - The comparison of the table of stop paths is kept with a hash of the program that
//     makes it, the table and the tree, and only when both agree.
//
// With KUBELET_GUARD_CACHE=off, everything is made in the checkout and every test runs.
//
// # Static binaries
//
// Binaries are built with CGO_ENABLED=0, although upstream's own kubelet is not.
// A static binary is reproducible without pinning a C compiler and its headers,
// cross-builds with nothing but Go, and runs on any distribution. The price is
// Go's own resolver instead of glibc's: name service modules other than files and
// DNS (nsswitch.conf) are not consulted.
package build
