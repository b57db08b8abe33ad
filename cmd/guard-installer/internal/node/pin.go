package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"path"
	"time"

	"sigs.k8s.io/yaml"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
)

// pinHolds is how long the certificate that a kubelet showed before its change is the
// only one that it may show.
const pinHolds = time.Hour

// queryNow asks the kubelet of a change that may be long past. Its certificate may have been
// rotated since: it may show the one of the journal, or one that is in the files of the
// process, which only root can write. It returns the pin of the answer.
func (i *Installer) queryNow(ctx context.Context, address string, entry *journal.Entry, process host.Process) (answer kubelet.Answer, pin string, err error) {
	for _, pin := range i.pins(entry, process) {
		var shown string
		if answer, shown, err = i.Ask(ctx, address, pin); !errors.Is(err, kubelet.ErrOtherCertificate) {
			return answer, shown, err
		}
	}
	return answer, "", err
}

// pins returns the certificates that the kubelet may show. An empty one is any.
func (i *Installer) pins(entry *journal.Entry, process host.Process) []string {
	var pins []string
	for _, name := range i.certificateFiles(process) {
		data, err := i.Root.Read(name)
		if err != nil {
			continue
		}
		if block, _ := pem.Decode(data); block != nil && block.Type == "CERTIFICATE" {
			sum := sha256.Sum256(block.Bytes)
			pins = append(pins, hex.EncodeToString(sum[:]))
		}
	}
	boot, err := i.Root.Boot()
	age := time.Since(entry.Started)
	past := err == nil && boot != entry.Boot || age < 0 || age > pinHolds
	if entry.Pin != "" && !(past && len(pins) == 0) {
		pins = append(pins, entry.Pin)
	}
	if len(pins) == 0 {
		return []string{""}
	}
	return pins
}

// certificateFiles returns where the kubelet may have its serving certificate.
func (i *Installer) certificateFiles(process host.Process) []string {
	var files []string
	if name, _ := process.Flag("--tls-cert-file"); name != "" {
		files = append(files, name)
	}
	if name, _ := process.Flag("--config"); name != "" {
		var configuration struct {
			TLSCertFile string `json:"tlsCertFile"`
		}
		if data, err := i.Root.Read(name); err == nil && yaml.Unmarshal(data, &configuration) == nil && configuration.TLSCertFile != "" {
			files = append(files, configuration.TLSCertFile)
		}
	}
	dir, _ := process.Flag("--cert-dir")
	if dir == "" {
		dir = "/var/lib/kubelet/pki"
	}
	return append(files, path.Join(dir, "kubelet-server-current.pem"), path.Join(dir, "kubelet.crt"))
}
