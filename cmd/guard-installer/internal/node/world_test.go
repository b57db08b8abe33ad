package node

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

const (
	stockVersion   = "v1.36.3"
	guardedVersion = "v1.36.3+guard.0.1.0"
	unitFile       = "/usr/lib/systemd/system/kubelet.service"
	kubeadmFile    = "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf"
)

// program is a file with the header of a program for this machine and, behind it, how
// it behaves when the world starts it: words such as version=v1.36.3, guarded, nostart,
// kills, sick (nothing listens), deaf (no answer), unhealthy (only the guard answers).
func program(words ...string) []byte {
	return programFor(map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390}[architecture()], words...)
}

func programFor(machine elf.Machine, words ...string) []byte {
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64,
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, header)
	b.WriteString(strings.Join(words, " "))
	return b.Bytes()
}

func words(data []byte) []string {
	if len(data) < 64 {
		return nil
	}
	return strings.Fields(string(data[64:]))
}

func word(data []byte, key string) string {
	for _, w := range words(data) {
		if value, ok := strings.CutPrefix(w, key+"="); ok {
			return value
		}
	}
	return ""
}

// world is a node with a systemd, a kubelet, a container runtime and a cluster around
// it. Its files are real.
type world struct {
	t      *testing.T
	root   host.Root
	images string
	// process is the installer that runs, processes how many were started.
	process   *Installer
	processes int

	// systemd
	command  unit.Command // as read at the last reload
	files    []string
	stale    bool
	pid      int
	restarts uint32
	timer    bool
	// retry: systemd starts the unit that rolls back again after a while.
	retry bool
	// dies: the installer is killed after the next restart.
	dies bool
	// what the unit that rolls back says.
	broken error
	// silent: systemd does not report how units are.
	silent error

	// kubelet: the program that runs, nil for none
	running []byte
	// mode of the guard that runs, or why it could not read its configuration.
	mode        guard.Mode
	configError error
	started     int
	containers  []cri.Container
	held        []guard.PodState
	// unaccepted is why the image's kubelet does not accept the configuration, accepts why
	// that is not known.
	unaccepted string
	accepts    error
	// config is what the kubelet reports that it runs with, unless there is noConfig.
	config   kubelet.Config
	noConfig error
	// stops is how many containers the process of the kubelet has stopped.
	stops int
	// certificate is what the kubelet shows.
	certificate string

	// steps, see crash_test.go: onStep is called at each, with where in the code it is.
	onStep func(what, where string) error
	inStep bool
	full   bool
	// cluster
	node   *corev1.Node
	server string
	pods   []corev1.Pod
	// lost are pods that the API server has and the kubelet has not.
	lost   []corev1.Pod
	probes map[containers.Key]bool
	why    string
	// pools are other pools that have a roll-out.
	pools     map[string]rollout.Pool
	slot      bool
	slotTaken bool
	stopped   bool
	joined    bool
	// waiting is how many installers of the pool are not ready.
	waiting int
	// asked is how often the API server was queried, slotQueries how often for a slot.
	asked       int
	slotQueries int
	away        bool
	// unready: the node does not get ready with a guarded kubelet.
	unready bool
	reports []rollout.Report
	ready   bool
}

type crashed struct{}

// timeless is a test that waits for nothing: its clock goes on when all that is left to do
// is to wait. It runs at the same time as others.
func timeless(f func(t *testing.T)) func(t *testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, f)
	}
}

// inWorld is a timeless test of a world of its own.
func inWorld(f func(t *testing.T, w *world)) func(t *testing.T) {
	return timeless(func(t *testing.T) { f(t, newWorld(t)) })
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, root: host.Root(memory(t)), images: t.TempDir(), server: "v1.36.3", slot: true, certificate: "pin"}
	worlds.Store(w.root, w)
	t.Cleanup(func() { worlds.Delete(w.root) })
	w.file("/proc/sys/kernel/random/boot_id", "boot-1\n")
	w.file("/proc/1/stat", "1 (systemd) S "+strings.Repeat("0 ", 18)+"17 0")
	w.file("/run/containerd/containerd.sock", "")
	w.file(unitFile, "[Service]\nExecStart=/usr/bin/kubelet\n")
	w.file(kubeadmFile, "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_EXTRA_ARGS\n")
	require.NoError(t, w.root.Write("/usr/bin/kubelet", program("version="+stockVersion), 0o755))
	w.node = &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n"},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	w.startContainers("first")
	for _, name := range []string{"a", "b", "c"} {
		uid := types.UID("uid-" + name)
		w.pods = append(w.pods, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: uid}, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
	}
	w.image(program("version="+guardedVersion, "guarded"))
	require.NoError(t, w.Reload(context.Background()))
	require.NoError(t, w.Restart(context.Background(), rollout.KubeletUnit))
	return w
}

// memory is a folder in memory where there is one: what is synced a thousand times is
// not tested here.
func memory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "guard-installer-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (w *world) file(name, text string) {
	w.t.Helper()
	require.NoError(w.t, w.root.Write(name, []byte(text), 0o644))
}

// startContainers starts a container in each pod.
func (w *world) startContainers(id string) {
	w.containers = nil
	for _, name := range []string{"a", "b", "c"} {
		w.containers = append(w.containers, cri.Container{ID: id + "-" + name, PodUID: types.UID("uid-" + name), Namespace: "ns", Pod: name, Name: "main"})
	}
}

// image puts a kubelet into the image.
func (w *world) image(kubelet []byte) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(filepath.Join(w.images, "kubelet"), kubelet, 0o600))
	require.NoError(w.t, os.WriteFile(filepath.Join(w.images, "installer"), program("installer"), 0o600))
}

func request(target rollout.Target) rollout.Request {
	return rollout.Request{
		Target: target, Image: "image",
		VerifyTimeout: metav1.Duration{Duration: 2500 * time.Millisecond}, Settle: metav1.Duration{Duration: 60 * time.Millisecond},
	}
}

// installer is a process of the installer that has just been started.
func (w *world) installer(request rollout.Request) *Installer {
	if w.process != nil {
		w.process.disown() // that process is dead
	}
	w.process = w.another(request)
	return w.process
}

// another is a process of the installer that is started next to the one that runs.
func (w *world) another(request rollout.Request) *Installer {
	w.processes++
	return &Installer{
		Root: w.root, Systemd: w, Cluster: w, Owner: fmt.Sprintf("pod installer-%d of pool blue", w.processes),
		Request: request, Pool: rollout.Pool{Name: "blue", Selector: "x=y", MaxUnavailable: 1},
		Program: filepath.Join(w.images, "installer"), Kubelet: filepath.Join(w.images, "kubelet"),
		Ask: w.ask, Protected: w.protected, Pods: w.podsOfKubelet,
		Config: func(context.Context, string, string) (kubelet.Config, error) {
			w.step("kubelet")
			return w.config, w.noConfig
		},
		Running: func(context.Context, string) ([]cri.Container, error) {
			w.step("runtime")
			return slices.Clone(w.containers), nil
		},
		Version: func(_ context.Context, root host.Root, program string) (string, error) {
			w.step("program")
			if root != "" {
				program = root.Path(program)
			}
			data, err := os.ReadFile(program)
			return word(data, "version"), err
		},
		Accepts: func(context.Context, host.Root, string, host.Process) (string, error) {
			w.step("program")
			return w.unaccepted, w.accepts
		},
		SetReady: func(ready bool) error { w.step("readiness"); w.ready = ready; return nil },
		Poll:     5 * time.Millisecond,
		Recovery: 300 * time.Millisecond,
	}
}

// run has a new installer work until it has finished, and returns what it reports.
func (w *world) run(request rollout.Request) rollout.Report {
	w.t.Helper()
	installer := w.installer(request)
	report := step(w.t, installer)
	require.NoError(w.t, installer.writeReport(context.Background(), report))
	return report
}

// resume is kubectl guard rollout resume.
func (w *world) resume() {
	w.t.Helper()
	report, err := rollout.ReportOf(w.node)
	require.NoError(w.t, err)
	require.NotEmpty(w.t, report.Attempt)
	metav1.SetMetaDataAnnotation(&w.node.ObjectMeta, rollout.ResumeAnnotation, report.Attempt)
	delete(w.node.Labels, rollout.StateLabel)
}

// tree has the names of all files but those of /proc and the lock of a process.
func (w *world) tree() []string {
	w.t.Helper()
	var names []string
	require.NoError(w.t, filepath.Walk(string(w.root), func(path string, info os.FileInfo, err error) error {
		name := strings.TrimPrefix(path, string(w.root))
		if err == nil && !info.IsDir() && !strings.HasPrefix(name, "/proc/") && name != ownerFile {
			names = append(names, name)
		}
		return err
	}))
	return names
}

// systemd

func (w *world) call() { w.step("systemd") }

func (w *world) Reload(context.Context) error {
	w.call()
	var err error
	if w.files, err = unit.Files(w.root, rollout.KubeletUnit); err != nil {
		return err
	}
	w.command, err = unit.ExecStart(w.files, w.root.Read)
	w.stale = false
	return err
}

func (w *world) Restart(_ context.Context, name string) error {
	w.call()
	if name != rollout.KubeletUnit {
		return fmt.Errorf("unexpected restart of %s", name)
	}
	err := w.start()
	if w.dies {
		w.dies = false
		panic(crashed{})
	}
	return err
}

func (w *world) start() error {
	w.started++
	w.restarts, w.stops = 0, 0
	w.pid = 1000 + w.started
	data, err := w.root.Read(w.command.Program)
	if err != nil {
		return err
	}
	w.running = data
	w.mode, w.configError = w.configuredMode()
	w.file(fmt.Sprintf("/proc/%d/exe", w.pid), string(data))
	w.file(fmt.Sprintf("/proc/%d/cmdline", w.pid), w.command.Program+"\x00"+strings.ReplaceAll(w.command.Arguments, " ", "\x00")+"\x00")
	if slices.Contains(words(data), "nostart") {
		w.pid, w.running = 0, nil
	}
	if slices.Contains(words(data), "kills") {
		for _, c := range w.containers[1:] {
			w.stop(c)
		}
	}
	return nil
}

// configuredMode is the mode of the guard's configuration, which a kubelet reads when it
// starts and never again.
func (w *world) configuredMode() (guard.Mode, error) {
	_, config, ok := strings.Cut(w.command.Arguments, unit.GuardFlag+"=")
	if !ok {
		return guard.Enforce, nil
	}
	data, err := w.root.Read(config)
	if err != nil {
		return "", err
	}
	parsed, err := guard.ParseConfiguration(data)
	if err != nil {
		return "", err
	}
	return parsed.Mode, nil
}

// stop has the kubelet stop a container.
func (w *world) stop(container cri.Container) {
	w.stops++
	w.containers = slices.DeleteFunc(slices.Clone(w.containers), func(c cri.Container) bool { return c.ID == container.ID })
}

// dieAfterRestart has the installer die when it has exchanged the kubelet.
func (w *world) dieAfterRestart() *world {
	w.dies = true
	return w
}

func (w *world) Queue(_ context.Context, name string) error {
	w.call()
	return nil // the boot starts it
}

func (w *world) Unit(_ context.Context, name string) (systemd.Unit, error) {
	w.call()
	if w.silent != nil {
		return systemd.Unit{}, w.silent
	}
	if name == rollbackTimer {
		return systemd.Unit{Active: map[bool]string{true: "active", false: "inactive"}[w.timer]}, nil
	}
	u := systemd.Unit{Loaded: true, Active: "active", Sub: "running", Files: w.files, MainPID: w.pid, NeedsReload: w.stale}
	if w.pid == 0 {
		w.restarts++
		u.Active, u.Sub, u.Restarts = "activating", "auto-restart", w.restarts
	}
	return u, nil
}

func (w *world) Start(ctx context.Context, name string) error {
	w.call()
	if !w.root.Exists(filepath.Join(runtimeUnits, name)) {
		return fmt.Errorf("%s is not there", name)
	}
	switch name {
	case rollbackTimer:
		w.timer = true
		return nil
	case rollbackUnit:
		if w.broken != nil {
			return w.broken
		}
		var err error
		if dies(func() { _, err = w.rollBack() }) {
			err = errors.New("the process of the unit was killed")
		}
		w.retry = err != nil
		return err
	}
	return fmt.Errorf("unexpected start of %s", name)
}

// rollBack is what the node's own process does: it is no part of the installer, so
// nothing of it is cut off by a crash of the installer.
func (w *world) rollBack() (*journal.Entry, error) {
	holding := Holding{Root: w.root, Systemd: w, Protected: w.protected, Poll: time.Millisecond}
	return journal.Store{Root: w.root}.RollBackOrTry(context.Background(), w, holding.KeepReason, rollout.ReasonInterrupted, "the timer")
}

func (w *world) Stop(_ context.Context, name string) error {
	w.call()
	if name == rollbackUnit {
		w.retry = false
	}
	if name == rollbackTimer {
		w.timer = false
	}
	return nil
}

// kubelet

func (w *world) ask(_ context.Context, address, pin string) (kubelet.Answer, string, error) {
	w.step("kubelet")
	switch {
	case w.running == nil || w.is("sick"):
		return kubelet.Answer{}, "", errors.New("connection refused")
	case pin != "" && pin != w.certificate:
		return kubelet.Answer{}, "", kubelet.ErrOtherCertificate
	case w.is("deaf"):
		return kubelet.Answer{}, "", errors.New("no answer in time")
	case w.is("unhealthy"):
		return kubelet.Answer{}, "", errors.New("healthz says no")
	}
	answer := kubelet.Answer{Version: word(w.running, "version"), Stops: w.stops}
	if other := word(w.running, "says"); other != "" {
		answer.Version = other
	}
	if slices.Contains(words(w.running), "guarded") {
		answer.Guarded = true
		if w.configError != nil {
			return kubelet.Answer{}, "", w.configError
		}
		answer.Mode = w.mode
		answer.Pods = &guard.PodList{Items: w.held}
	}
	return answer, w.certificate, nil
}

func (w *world) podsOfKubelet(context.Context, string, string) (kubelet.Pods, error) {
	w.step("kubelet")
	if w.running == nil || w.is("sick") || w.is("deaf") {
		return kubelet.Pods{}, errors.New("connection refused")
	}
	pods := kubelet.Pods{FailedProbes: w.probes}
	for _, pod := range w.pods {
		pods.Items = append(pods.Items, *pod.DeepCopy())
	}
	return pods, nil
}

func (w *world) is(word string) bool { return slices.Contains(words(w.running), word) }

func (w *world) protected(ctx context.Context, address, pin string) (*guard.PodList, error) {
	w.step("kubelet")
	switch {
	case w.running == nil || w.is("sick"):
		return nil, kubelet.ErrNotListening
	case w.is("deaf"):
		return nil, errors.New("no answer in time")
	case !w.is("guarded"):
		return nil, nil
	}
	sick := w.running
	w.running = bytes.ReplaceAll(sick, []byte("unhealthy"), nil)
	defer func() { w.running = sick }()
	answer, _, err := w.ask(ctx, address, pin)
	if err != nil {
		return nil, err
	}
	answer.Pods.Mode = answer.Mode
	return answer.Pods, nil
}

// cluster

var errAway = errors.New("the API server is away")

// reach is a request to the API server.
func (w *world) reach() error {
	w.step("API server")
	w.asked++
	if w.away {
		return errAway
	}
	return nil
}

func (w *world) Node(context.Context) (*corev1.Node, error) {
	if err := w.reach(); err != nil {
		return nil, err
	}
	node := w.node.DeepCopy()
	node.Status.NodeInfo.KubeletVersion = word(w.running, "version")
	if w.running == nil || w.unready && w.is("guarded") {
		node.Status.Conditions[0].Status = corev1.ConditionUnknown
	}
	return node, nil
}
func (w *world) Pod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	if err := w.reach(); err != nil {
		return nil, err
	}
	for _, pod := range append(slices.Clone(w.pods), w.lost...) {
		if pod.Namespace == namespace && pod.Name == name {
			return &pod, nil
		}
	}
	return nil, nil
}
func (w *world) Heartbeat(context.Context) (time.Time, error) {
	if w.running == nil {
		return time.Time{}, w.reach()
	}
	return time.Now(), w.reach()
}
func (w *world) Selects(_ context.Context, pool string, node *corev1.Node) (bool, error) {
	return w.pools[pool].Matches(node), w.reach()
}
func (w *world) ServerVersion(context.Context) (string, error) { return w.server, w.reach() }
func (w *world) ReleaseSlot(context.Context) error {
	if err := w.reach(); err != nil {
		return err
	}
	w.slotTaken, w.stopped = false, false
	return nil
}
func (w *world) StopPool(context.Context, string) error {
	if err := w.reach(); err != nil {
		return err
	}
	w.slotTaken, w.stopped = true, true
	return nil
}
func (w *world) Untaint(_ context.Context, node *corev1.Node) error {
	for _, taint := range node.Spec.Taints {
		if taint.Key == rollout.UnguardedTaint {
			if err := w.reach(); err != nil {
				return err
			}
			w.node.Spec.Taints = nil
		}
	}
	return nil
}
func (w *world) Event(_ context.Context, kind, reason, text string) error { return w.reach() }
func (w *world) TakeSlot(_ context.Context, _ *corev1.Node, _ string, refuses bool) (cluster.Turn, error) {
	if err := w.reach(); err != nil {
		return cluster.Turn{}, err
	}
	w.slotQueries++
	turn := cluster.Turn{WaitReason: w.why, Joined: w.joined, Slots: 1, Unready: max(1, w.waiting)}
	switch {
	case w.why != "" || refuses && w.joined:
	case w.slot:
		turn.Slot, w.slotTaken = true, true
	default:
		turn.WaitReason = "it waits for one of 1 slots of the pool"
	}
	return turn, nil
}
func (w *world) Report(_ context.Context, report rollout.Report, mark *bool) error {
	if err := w.reach(); err != nil {
		return err
	}
	w.reports = append(w.reports, report)
	metav1.SetMetaDataAnnotation(&w.node.ObjectMeta, rollout.ReportAnnotation, report.Annotation())
	if mark != nil && *mark {
		metav1.SetMetaDataLabel(&w.node.ObjectMeta, rollout.StateLabel, rollout.StateFailed)
	} else if mark != nil {
		delete(w.node.Labels, rollout.StateLabel)
	}
	return nil
}
