package kubelet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

// Identity distinguishes the kubelet of a node from others that may listen at its port: every
// process of the node can take it while no kubelet listens, and a host port of a pod may
// lead elsewhere.
type Identity struct {
	Root host.Root
	// PID is the main process of kubelet.service.
	PID int
}

// defaultCertDir is where a kubelet keeps its certificates unless --cert-dir says more.
const defaultCertDir = "/var/lib/kubelet/pki"

// Check returns an error unless the one at the other end of a connection is the kubelet:
// it has shown a certificate from the kubelet's own files, or the connection belongs to
// its process. local is the address of the connection here, certificate the one that was
// shown, in DER.
func (i Identity) Check(local net.Addr, certificate []byte) error {
	if i.PID <= 0 {
		return errors.New("the kubelet does not run, so the process that listens at its port gets no token")
	}
	process, err := i.Root.Process(i.PID)
	if err != nil {
		return err
	}
	own, certErr := i.ownCertificate(process, certificate)
	if own {
		return nil
	}
	accepted, err := i.accepted(local)
	if accepted {
		return nil
	}
	return errors.Join(fmt.Errorf("it gets no token: the certificate is not in the files of the kubelet, and the connection does not belong to its process %d", i.PID), certErr, err)
}

// ownCertificate reports whether a certificate is in the files of the kubelet.
func (i Identity) ownCertificate(process host.Process, certificate []byte) (bool, error) {
	dir, _ := process.Flag("--cert-dir")
	if dir == "" {
		dir = defaultCertDir
	}
	names := []string{path.Join(dir, "kubelet-server-current.pem"), path.Join(dir, "kubelet.crt")}
	config, err := ConfigOf(i.Root, process)
	if config.TLSCertFile != "" {
		names = append(names, config.TLSCertFile)
	}
	for _, name := range names {
		data, readErr := i.Root.Read(name)
		if readErr != nil {
			if !errors.Is(readErr, fs.ErrNotExist) {
				err = errors.Join(err, readErr)
			}
			continue
		}
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" && bytes.Equal(block.Bytes, certificate) {
				return true, nil
			}
		}
	}
	return false, err
}

// accepted reports whether the process of the kubelet has the other end of a connection.
func (i Identity) accepted(local net.Addr) (bool, error) {
	here, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return false, err
	}
	dir := filepath.Join(string(i.Root), "proc", strconv.Itoa(i.PID))
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(filepath.Join(dir, "net", table))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6 here
		}
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(data)) {
			// 0: 0100007F:280A 0100007F:C350 01 … inode is the tenth field
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != "01" {
				continue
			}
			remote, err := parseSocket(fields[2])
			if err == nil && remote.Addr() == here.Addr().Unmap().WithZone("") && remote.Port() == here.Port() {
				inodes[fields[9]] = true
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false, err
	}
	for _, entry := range entries {
		link, err := os.Readlink(filepath.Join(dir, "fd", entry.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok && inodes[strings.TrimSuffix(inode, "]")] {
			return true, nil
		}
	}
	return false, nil
}

// parseSocket reads an address of /proc/net/tcp: words of 32 bits in the byte order of the
// machine, and the port.
func parseSocket(text string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(words)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for at := 0; at < len(raw); at += 4 {
		binary.NativeEndian.PutUint32(raw[at:], binary.BigEndian.Uint32(raw[at:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	number, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(number)), nil
}
