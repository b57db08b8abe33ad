package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"kubelet-guard.io/node-e2e/framework"
)

// auditPolicy logs the requests of nodes, each once, when it is over. The object of an
// event and of a token is in the request only.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - level: Request
    userGroups: [system:nodes]
    resources:
      - group: ""
        resources: [events, serviceaccounts/token]
  - level: Metadata
    userGroups: [system:nodes]
`

func auditLogPath() string { return filepath.Join(artifactsDir(), "audit.log") }

// auditFlags writes the policy and returns the flags with which the API server keeps
// the log.
func auditFlags() ([]string, error) {
	policy := filepath.Join(artifactsDir(), "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o644); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(auditLogPath()); err != nil {
		return nil, err
	}
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + auditLogPath(), "--audit-log-mode=blocking"}, nil
}

// auditRequest is a request of the node.
type auditRequest struct{ auditv1.Event }

// readAudit returns the requests since.
func readAudit(since time.Time) []auditRequest {
	GinkgoHelper()
	var requests []auditRequest
	for _, event := range framework.Must(framework.ReadAudit(auditLogPath(), since)) {
		requests = append(requests, auditRequest{event})
	}
	return requests
}

func apiRow(r auditRequest) string {
	if r.ObjectRef == nil {
		return r.Verb + " " + r.RequestURI
	}
	resource := r.ObjectRef.Resource
	if r.ObjectRef.Subresource != "" {
		resource += "/" + r.ObjectRef.Subresource
	}
	return r.Verb + " " + resource
}

// life returns the pod that the request is about.
func (r auditRequest) life(lives []*countedLife, namespace string) *countedLife {
	if r.ObjectRef == nil {
		return nil
	}
	if r.RequestObject != nil {
		// Events and tokens: the UID is in the body.
		if life := lifeIn(lives, string(r.RequestObject.Raw)); life != nil {
			return life
		}
	}
	for _, life := range lives {
		switch {
		case r.ObjectRef.Resource == "pods" && r.ObjectRef.Namespace == namespace && r.ObjectRef.Name == life.name,
			r.ObjectRef.Name == string(life.uid),
			// A patch of an event has the event's name only, which begins with the pod's.
			r.ObjectRef.Resource == "events" && r.ObjectRef.Namespace == namespace && strings.HasPrefix(r.ObjectRef.Name, life.name+"."):
			return life
		}
	}
	return nil
}

// syncTrace is what strace writes about a kubelet.
type syncTrace struct{ dir string }

// newSyncTrace needs strace (Debian: strace).
func newSyncTrace() *syncTrace {
	GinkgoHelper()
	_, err := exec.LookPath("strace")
	Expect(err).NotTo(HaveOccurred(), "counting fsyncs needs strace: apt-get install strace")
	return &syncTrace{dir: GinkgoT().TempDir()}
}

func (t *syncTrace) output() string { return filepath.Join(t.dir, "strace.txt") }

// kubelet returns a program that is the kubelet under strace. The tracer is a process
// of its own (-D), so that the kubelet keeps its process id, and the kernel stops it at
// the traced calls only (--seccomp-bpf).
func (t *syncTrace) kubelet(binary string) string {
	GinkgoHelper()
	program := filepath.Join(t.dir, "kubelet")
	script := fmt.Sprintf("#!/bin/sh\nexec strace -D -f --seccomp-bpf -y -qq -e signal=none -e trace=fsync,fdatasync,syncfs -o '%s' '%s' \"$@\"\n", t.output(), binary)
	Expect(os.WriteFile(program, []byte(script), 0o755)).To(Succeed())
	return program
}

var syncLine = regexp.MustCompile(`(?m)^\d+\s+(?:fsync|fdatasync|syncfs)\(\d+<([^>]*)>`)

// synced returns the paths that were synced.
func (t *syncTrace) synced() []string {
	GinkgoHelper()
	return syncedPaths(string(framework.Must(os.ReadFile(t.output()))))
}

func syncedPaths(trace string) []string {
	var paths []string
	for _, m := range syncLine.FindAllStringSubmatch(trace, -1) {
		paths = append(paths, m[1])
	}
	return paths
}

func TestSyncedPaths(t *testing.T) {
	const trace = `17 fsync(12</var/lib/kubelet/guard/pods/u1.pod.new>) = 0
18    fdatasync(9</var/lib/kubelet/x> <unfinished ...>
17 fsync(13</var/lib/kubelet/guard/pods> <unfinished ...>
18 <... fdatasync resumed>)              = 0
17 <... fsync resumed>)                  = 0
17 +++ exited with 0 +++
`
	want := []string{"/var/lib/kubelet/guard/pods/u1.pod.new", "/var/lib/kubelet/x", "/var/lib/kubelet/guard/pods"}
	if diff := cmp.Diff(want, syncedPaths(trace)); diff != "" {
		t.Error(diff)
	}
}

// writeWatch notes what is written in a folder and the folders in it.
type writeWatch struct {
	file  *os.File
	names chan string
}

// watchWrites watches a folder that may not exist. Folders that are made in it later
// are seen, but not watched.
func watchWrites(root string) *writeWatch {
	GinkgoHelper()
	w := &writeWatch{names: make(chan string, 4096)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	Expect(err).NotTo(HaveOccurred(), "watch %s", root)
	w.file = os.NewFile(uintptr(fd), "inotify")
	const what = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE
	_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_, err = unix.InotifyAddWatch(fd, path, what)
		}
		return err
	})
	go func() {
		defer close(w.names)
		buffer := make([]byte, 64<<10)
		for {
			n, err := w.file.Read(buffer)
			if err != nil {
				return
			}
			for offset := 0; offset+unix.SizeofInotifyEvent <= n; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&buffer[offset]))
				begin := offset + unix.SizeofInotifyEvent
				offset = begin + int(event.Len)
				w.names <- strings.TrimRight(string(buffer[begin:offset]), "\x00")
			}
		}
	}()
	return w
}

// stop returns the name of the file of each operation.
func (w *writeWatch) stop() []string {
	GinkgoHelper()
	// What has happened is in the queue already.
	time.Sleep(100 * time.Millisecond)
	Expect(w.file.Close()).To(Succeed())
	var names []string
	for name := range w.names {
		names = append(names, name)
	}
	return names
}

func TestWatchWrites(t *testing.T) {
	g := NewWithT(t)
	root := t.TempDir()
	g.Expect(os.Mkdir(filepath.Join(root, "pods"), 0o755)).To(Succeed())
	RegisterTestingT(t)
	w := watchWrites(root)
	g.Expect(os.WriteFile(filepath.Join(root, "pods", "u1.new"), []byte("x"), 0o600)).To(Succeed())
	g.Expect(os.Rename(filepath.Join(root, "pods", "u1.new"), filepath.Join(root, "pods", "u1"))).To(Succeed())
	g.Expect(os.Remove(filepath.Join(root, "pods", "u1"))).To(Succeed())
	g.Expect(w.stop()).To(Equal([]string{"u1.new", "u1.new", "u1.new", "u1", "u1"}))
}
