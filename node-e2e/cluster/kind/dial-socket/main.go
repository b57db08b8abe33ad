// Command dial-socket joins its standard input and output to a unix socket. It is in
// the node image: by `docker exec` a client outside of the node speaks to the node's
// container runtime, wherever the engine runs.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dial-socket PATH")
		os.Exit(2)
	}
	if err := join(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "dial-socket:", err)
		os.Exit(1)
	}
}

// join returns when the server has closed the connection. The end of in is passed on,
// and does not end it.
func join(path string, in io.Reader, out io.Writer) error {
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, _ = io.Copy(connection, in)
		_ = connection.CloseWrite()
	}()
	_, err = io.Copy(out, connection)
	return err
}
