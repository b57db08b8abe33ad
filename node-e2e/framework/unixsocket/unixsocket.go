// Package unixsocket reaches Unix sockets whose path is longer than the 107 bytes that a
// socket address holds: those of a node, as a process outside of it sees them.
package unixsocket

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Dial connects to a socket.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	folder, err := OpenFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", folder.Path(filepath.Base(path)))
}

// Client makes a gRPC client of the server behind a socket. It connects with the first
// call; the caller closes it.
func Client(path string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+filepath.Base(path), append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return Dial(ctx, path) }),
	}, options...)...)
}

// Folder is an open folder, which gives its sockets short paths in this process.
type Folder struct{ file *os.File }

// OpenFolder opens a folder. The caller closes it when no path of it is needed any more:
// a listener's is needed until the listener is closed, which removes the socket.
func OpenFolder(path string) (Folder, error) {
	file, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	return Folder{file}, err
}

// Path is the short path of a socket in the folder.
func (f Folder) Path(name string) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(f.file.Fd())), name)
}

// Close closes the folder.
func (f Folder) Close() error { return f.file.Close() }
