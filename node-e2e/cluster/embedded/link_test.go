package embedded

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLinkDelaysWhatItIsGivenWhileItIsCut(t *testing.T) {
	link := newTestLink(t)
	connection, err := net.Dial("tcp", link.listener.Addr().String())
	require.NoError(t, err)
	defer connection.Close()
	require.Equal(t, "a", echo(t, connection, "a"))

	require.NoError(t, link.Cut())
	_, err = io.WriteString(connection, "b")
	require.NoError(t, err)
	late, err := net.Dial("tcp", link.listener.Addr().String())
	require.NoError(t, err, "a connection can be made while the link is cut")
	defer late.Close()
	_, err = io.WriteString(late, "c")
	require.NoError(t, err)
	for _, c := range []net.Conn{connection, late} {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		n, err := c.Read(make([]byte, 1))
		assert.Zero(t, n, "bytes that came through a link that is cut")
		assert.ErrorContains(t, err, "timeout")
		require.NoError(t, c.SetReadDeadline(time.Time{}))
	}

	require.NoError(t, link.Restore())
	assert.Equal(t, "b", read(t, connection))
	assert.Equal(t, "c", read(t, late))
}

func TestLinkLosesWhatIsOnTheWayWhenItIsReset(t *testing.T) {
	link := newTestLink(t)
	connection, err := net.Dial("tcp", link.listener.Addr().String())
	require.NoError(t, err)
	defer connection.Close()
	require.Equal(t, "a", echo(t, connection, "a"))
	require.NoError(t, link.Cut())
	_, err = io.WriteString(connection, "b")
	require.NoError(t, err)
	require.NoError(t, link.Reset())
	require.NoError(t, link.Restore())
	n, err := connection.Read(make([]byte, 1))
	assert.Zero(t, n)
	assert.Error(t, err, "the connection has ended")

	again, err := net.Dial("tcp", link.listener.Addr().String())
	require.NoError(t, err)
	defer again.Close()
	assert.Equal(t, "c", echo(t, again, "c"))
}

func TestLinkClosesWhileItIsCut(t *testing.T) {
	link := newTestLink(t)
	connection, err := net.Dial("tcp", link.listener.Addr().String())
	require.NoError(t, err)
	defer connection.Close()
	require.Equal(t, "a", echo(t, connection, "a"))
	require.NoError(t, link.Cut())
	require.NoError(t, link.Close())
	n, err := connection.Read(make([]byte, 1))
	assert.Zero(t, n)
	assert.Error(t, err, "the connection has ended")
}

// newTestLink makes a link to a server that sends back what it gets.
func newTestLink(t *testing.T) *Link {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { server.Close() })
	go func() {
		for {
			connection, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			}()
		}
	}()
	link, err := newLink("127.0.0.1:0", server.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = link.Close() })
	return link
}

func echo(t *testing.T, connection net.Conn, text string) string {
	_, err := io.WriteString(connection, text)
	require.NoError(t, err)
	return read(t, connection)
}

func read(t *testing.T, connection net.Conn) string {
	require.NoError(t, connection.SetReadDeadline(time.Now().Add(5*time.Second)))
	buffer := make([]byte, 1)
	_, err := io.ReadFull(connection, buffer)
	require.NoError(t, err)
	return string(buffer)
}
