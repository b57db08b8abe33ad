//go:build unix

package guard

import (
	"os"
	"syscall"
)

// openOwn are the flags with which a file of the state directory is opened: never
// through a symbolic link, and without waiting for the other end of a pipe.
const openOwn = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// ownerOf returns the owner of a file and how many names it has.
func ownerOf(info os.FileInfo) (uid, names int) {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid), int(stat.Nlink)
	}
	return -1, 0
}
