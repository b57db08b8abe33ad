package main

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestJoin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer listener.Close()
	heard := make(chan string, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer connection.Close()
		content, _ := io.ReadAll(connection)
		heard <- string(content)
		_, _ = io.WriteString(connection, "answer")
	}()
	var out bytes.Buffer
	require.NoError(t, join(path, strings.NewReader("question"), &out))
	require.Equal(t, "question", <-heard)
	require.Equal(t, "answer", out.String())

	require.Error(t, join(path+".absent", strings.NewReader(""), &out))
}
