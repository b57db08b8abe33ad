package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/version"
	nodeutil "k8s.io/component-helpers/node/util"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// spareSpace is what must be free beyond the size of the programs, in bytes.
const spareSpace = 64 << 20

// smallSpace must be free where drop-ins and the journal are, in bytes.
const smallSpace = 4 << 20

// runSpace must be free in /run, in bytes: systemd refuses to read units again below
// 16 MiB, and a rollback needs that.
const runSpace = 32 << 20

// architecture is that of this program, and so of the node.
func architecture() string { return runtime.GOARCH }

// view is how a node is found. Nothing was written to get it.
type view struct {
	unit systemd.Unit
	// command is what kubelet.service runs without our drop-in.
	command unit.Command
	// dropIn is ours, nil when there is none.
	dropIn  *string
	process host.Process
	node    *corev1.Node
	answer  kubelet.Answer
	pin     string
	address string
	socket  string
	// stock is the kubelet of command, offered that of the image, now the one that runs.
	stock, offered, now rollout.Kubelet
	installerSum        string
	// wanted is the drop-in that the request needs, nil for none; program and config
	// are the paths that it names, configData is the content of config.
	wanted          *string
	program, config string
	configData      []byte
	held            []types.UID
	heldPods        []string
	protected       int
	// unknown is why nobody knows what is held.
	unknown error
	running []cri.Container
	// kubeletConfig is the configuration of the kubelet that runs.
	kubeletConfig kubelet.Config
	// pods are those of the kubelet; nil when it could not be queried.
	pods []corev1.Pod
	// complete: everything was inspected. guardFlag: the process has the flag.
	complete, guardFlag bool
	// healthy: a node that is not healthy is refused.
	healthy bool
	// intact: the guard's configuration that wanted names is the one that was written.
	intact   answer.Answer
	refusals []refusal
}

var errNotRunning = errors.New("kubelet.service does not run")

func (v *view) refuse(reason rollout.Reason, format string, arguments ...any) {
	v.refusals = append(v.refusals, refusal{reason, fmt.Sprintf(format, arguments...)})
}

// preflightLater reports what was found the last time.
func (i *Installer) preflightLater(_ context.Context, s State) (*rollout.Report, error) {
	return s.observed, nil
}

// preflightOnly reports what was found, and changes nothing.
func (i *Installer) preflightOnly(ctx context.Context, s State) (*rollout.Report, error) {
	if len(s.view.refusals) > 0 {
		return i.refuse(ctx, s)
	}
	report := i.reportOn(s.view)
	report.Phase, report.Message = rollout.Observed, "Nothing was changed"
	i.observed, i.observedUntil = &report, time.Now().Add(jittered(checkReport))
	return &report, nil
}

// preflight finds out how the node is and what keeps the request from it. The error is about
// what may be different the next time.
func (i *Installer) preflight(ctx context.Context, s State) (_ *rollout.Report, err error) {
	// Removing or replacing the guard must work on an unhealthy node, too.
	v := &view{dropIn: s.dropIn, healthy: i.strict() && !(s.entry.Kept() && s.unmodified().IsYes())}
	if s.dropInErr != nil {
		return nil, s.dropInErr
	}
	if v.node, err = i.Cluster.Node(ctx); err != nil {
		return nil, err
	}
	i.seen, v.address = v.node, kubeletAddress(v.node)
	if v.unit, err = i.Systemd.Unit(ctx, rollout.KubeletUnit); err != nil {
		return nil, err
	}
	if i.inspectUnit(ctx, v); v.command.Program != "" {
		if err := i.inspectKubelet(ctx, v); err != nil {
			return nil, err
		}
		i.inspectRuntime(ctx, v)
		if err := i.inspectImage(ctx, v); err != nil {
			return nil, err
		}
		i.checkHeldPods(v)
		v.intact, v.complete = i.configurationIntact(v.wanted), true
	}
	i.view = v
	return nil, nil
}

// strict: what is wrong with the node keeps the request from it.
func (i *Installer) strict() bool { return i.Request.Target != rollout.Stock }

// inspectUnit finds the command of the unit, and leaves it empty where it is not understood.
func (i *Installer) inspectUnit(ctx context.Context, v *view) {
	switch {
	case !v.unit.Loaded || len(v.unit.Files) == 0:
		v.refuse(rollout.ReasonUnit, "the node has no %s: its kubelet is run by something else than systemd, or under another name", rollout.KubeletUnit)
		return
	case v.dropIn != nil && !unit.Ours([]byte(*v.dropIn)):
		v.refuse(rollout.ReasonUnit, "%s was not written by a roll-out; give it another name", rollout.DropIn)
		return
	}
	judged := unit.Judge(v.unit.Files, rollout.DropIn, i.Root.Read)
	for _, why := range judged.Refusals {
		v.refuse(rollout.ReasonUnit, "%s", why)
	}
	if !judged.Understood() {
		return
	}
	v.command = judged.Command
	i.checkNeighbours(v, judged)
	if v.command.HasGuard() {
		v.refuse(rollout.ReasonForeignGuard, "%s runs a guarded kubelet already (a package, or by hand): the roll-out leaves such nodes alone. Remove it there first, or keep the node out of the pool", v.command.File)
	}
	i.checkStock(ctx, v)
}

// checkNeighbours refuses a restart of the kubelet in which systemd would stop the
// container runtime or containers as well.
func (i *Installer) checkNeighbours(v *view, judged unit.Verdict) {
	var processes []string
	if v.unit.ControlGroup != "" && judged.KillMode != "process" {
		var err error
		if processes, err = i.Root.InControlGroup(v.unit.ControlGroup); err != nil {
			v.refuse(rollout.ReasonUnit, "it is not known what else runs in the control group of %s, which systemd kills in a restart (KillMode=%s): %v. Set KillMode=process in a drop-in of the unit", rollout.KubeletUnit, judged.KillMode, err)
			return
		}
	}
	for _, why := range judged.Alive(v.unit.StoppedWith, processes) {
		v.refuse(rollout.ReasonUnit, "%s", why)
	}
}

// inspectKubelet inspects the kubelet that runs, and its node.
func (i *Installer) inspectKubelet(ctx context.Context, v *view) (err error) {
	if v.unit.MainPID > 0 {
		if v.process, err = i.Root.Process(v.unit.MainPID); err != nil {
			return err // it may just have been restarted
		}
		v.now.SHA256 = v.process.SHA256
	}
	if !v.unit.Running() && v.healthy {
		v.refuse(rollout.ReasonKubelet, "%s is %s (%s): fix that first", rollout.KubeletUnit, v.unit.Active, v.unit.Sub)
	}
	i.queryKubelet(ctx, v)
	if i.Request.Target == rollout.Stock && v.stock.Version != "" {
		if err := i.checkReturn(ctx, v); err != nil {
			return err
		}
	}
	v.heldAndProtected()
	v.now.Path = v.command.Program
	if v.dropIn != nil {
		v.now.Path = path.Join(rollout.InstallDir, v.process.SHA256, "kubelet")
	}
	if v.healthy && !nodeReady(v.node) {
		v.refuse(rollout.ReasonNode, "node %s is not ready: fix that first", v.node.Name)
	}
	if short := pressure(v.node); v.healthy && short != "" {
		v.refuse(rollout.ReasonPressure, "node %s reports %s, and its kubelet evicts pods: wait until it has ended, or fix the node", v.node.Name, short)
	}
	_, v.guardFlag = v.process.Flag(unit.GuardFlag)
	switch {
	case v.dropIn != nil || v.command.HasGuard():
	case v.answer.Guarded || v.guardFlag:
		v.refuse(rollout.ReasonForeignGuard, "the kubelet runs with the guard, which no roll-out installed (a package, or %s in its arguments): the roll-out leaves such nodes alone. Remove it there first, or keep the node out of the pool", unit.GuardFlag)
	case v.now.SHA256 != "" && v.stock.SHA256 != "" && v.now.SHA256 != v.stock.SHA256 && i.strict():
		v.refuse(rollout.ReasonKubelet, "the kubelet that runs is not the one in %s, which was replaced without a restart: restart it first, so that it is known to work", v.command.Program)
	}
	if v.unit.NeedsReload && i.strict() {
		v.refuse(rollout.ReasonUnit, "unit files of %s have changed and systemd has not read them: run systemctl daemon-reload and restart the kubelet first, so that the change is known to work", rollout.KubeletUnit)
	}
	return nil
}

// queryKubelet queries the kubelet for its version and its guard. While none runs nothing is
// queried: who knows what listens at its port.
func (i *Installer) queryKubelet(ctx context.Context, v *view) {
	var forbidden *kubelet.ForbiddenError
	err := errNotRunning
	for range 3 { // a slow response is not worth a refusal
		if !v.unit.Running() {
			break
		}
		if v.answer, v.pin, err = i.Ask(ctx, v.address, ""); err == nil || errors.As(err, &forbidden) {
			break
		}
		time.Sleep(i.Poll)
	}
	switch {
	case err == nil:
		v.now.Version, v.now.Mode = v.answer.Version, v.answer.Mode
	case forbidden != nil:
		v.refuse(rollout.ReasonKubelet, "%v", err)
	case v.healthy:
		v.refuse(rollout.ReasonKubelet, "the kubelet is not healthy: %v", err)
	case v.dropIn != nil && !v.unit.Running():
		v.unknown = err
	case v.dropIn != nil:
		// What it holds it may still report.
		if list, listErr := i.Protected(ctx, v.address, ""); listErr != nil {
			v.unknown = err
		} else if list != nil {
			v.answer = kubelet.Answer{Version: list.Version, Guarded: true, Mode: list.Mode, Pods: list}
			v.now.Version, v.now.Mode = list.Version, list.Mode
		}
	}
}

// inspectRuntime inspects the container runtime.
func (i *Installer) inspectRuntime(ctx context.Context, v *view) {
	err := i.readConfig(ctx, v)
	if err == nil {
		v.socket, err = cri.Socket(i.Root, v.kubeletConfig.ContainerRuntimeEndpoint)
	}
	if err == nil {
		v.running, err = i.Running(ctx, v.socket)
	}
	if err != nil {
		v.refuse(rollout.ReasonRuntime, "%v", err)
		return
	}
	pods, err := i.Pods(ctx, v.address, v.pin)
	if err != nil {
		if v.healthy {
			v.refuse(rollout.ReasonKubelet, "the kubelet does not report which pods it has: %v", err)
		}
		return
	}
	v.pods = pods.Items
	if why := containers.Foreign(v.running, v.pods); why != "" {
		v.refuse(rollout.ReasonRuntime, "%s is not the container runtime of the kubelet: %s. Name the right one in containerRuntimeEndpoint of the kubelet's configuration", v.socket, why)
	}
}

// inspectImage inspects what the image offers, and finds the drop-in that the request needs.
func (i *Installer) inspectImage(ctx context.Context, v *view) error {
	before := v.refusals
	if err := i.checkOffer(ctx, v); err != nil {
		return err
	}
	if !i.strict() {
		v.refusals = before
	}
	if err := i.want(v); err != nil && len(v.refusals) == 0 {
		v.refuse(rollout.ReasonUnit, "%v", err)
	}
	return nil
}

// readConfig reads the configuration of the kubelet that runs. What it reports itself
// counts; without a response its files do.
func (i *Installer) readConfig(ctx context.Context, v *view) error {
	files, err := kubelet.ConfigOf(i.Root, v.process)
	if err != nil {
		return err
	}
	v.kubeletConfig = files
	if v.pin == "" {
		return nil // it does not respond
	}
	config, err := i.Config(ctx, v.address, v.pin)
	if err != nil {
		klog.InfoS("The kubelet does not report its configuration, its files count", "err", err)
		return nil
	}
	v.kubeletConfig = config
	if at := func(endpoint string) string { return i.Root.Path(strings.TrimPrefix(endpoint, "unix://")) }; files.ContainerRuntimeEndpoint != "" &&
		at(files.ContainerRuntimeEndpoint) != at(config.ContainerRuntimeEndpoint) {
		return fmt.Errorf("the kubelet runs with the container runtime at %s, and its flags and files name %s, which have changed since it was started: restart it first, so that the change is known to work", config.ContainerRuntimeEndpoint, files.ContainerRuntimeEndpoint)
	}
	return nil
}

// checkStock inspects the kubelet of the node's own command.
func (i *Installer) checkStock(ctx context.Context, v *view) {
	program := v.command.Program
	v.stock.Path = program
	where := i.Root.Path(program)
	arch, err := elfArchitecture(where)
	switch {
	case err != nil:
		v.refuse(rollout.ReasonUnit, "%s: ExecStart= runs %s, which is not a program (a script?): %v", v.command.File, program, err)
		return
	case arch != architecture():
		v.refuse(rollout.ReasonArchitecture, "the node's kubelet %s is for %s, the installer for %s", program, arch, architecture())
		return
	}
	if v.stock.SHA256, err = host.Checksum(where); err != nil {
		v.refuse(rollout.ReasonUnit, "read %s: %v", program, err)
	} else if v.stock.Version, err = i.Version(ctx, i.Root, program); err != nil {
		v.refuse(rollout.ReasonVersion, "the version of the node's kubelet: %v", err)
	}
}

// checkReturn checks whether the stock kubelet, which the distribution may have upgraded
// since, fits the API server and is close to the kubelet that runs.
func (i *Installer) checkReturn(ctx context.Context, v *view) error {
	if v.stock.Version == i.Request.StockVersion {
		return nil
	}
	server, err := i.Cluster.ServerVersion(ctx)
	if err != nil {
		return err
	}
	running := v.now.Version
	if entry, err := i.store().Read(); err == nil && entry != nil && running == "" {
		running = entry.Kubelet.Version // it does not respond
	}
	if why := misfit(v.stock.Version, running, server); why != "" {
		v.refuse(rollout.ReasonVersion, "now %s runs, then the stock kubelet %s (%s) would: %s. Install a stock kubelet that fits, or accept this one (--stock-version=%s)",
			describe(v.now), v.stock.Version, v.stock.Path, why, v.stock.Version)
	}
	return nil
}

const (
	// olderMinors is how many minor versions a kubelet may be older than its API server.
	olderMinors = 3
	// otherMinors is how many minor versions a kubelet may be away from the one before it.
	otherMinors = 1
)

// misfit explains why a stock kubelet does not fit; "" when it does. An empty version of the
// kubelet that runs is one that nobody knows.
func misfit(stock, running, server string) string {
	parse := func(text, whose string) (major, minor int, why string) {
		parsed, err := version.ParseSemantic(text)
		if err != nil {
			return 0, 0, fmt.Sprintf("the version %q of the %s is not understood", text, whose)
		}
		return int(parsed.Major()), int(parsed.Minor()), ""
	}
	major, minor, why := parse(stock, "stock kubelet")
	if why != "" {
		return why
	}
	serverMajor, serverMinor, why := parse(server, "API server")
	switch {
	case why != "":
		return why
	case major != serverMajor || minor > serverMinor:
		return fmt.Sprintf("it is newer than the API server (%s)", server)
	case minor < serverMinor-olderMinors:
		return fmt.Sprintf("it is more than %d minor versions older than the API server (%s)", olderMinors, server)
	case running == "":
		return ""
	}
	runningMajor, runningMinor, why := parse(running, "kubelet that runs")
	switch {
	case why != "":
		return why
	case major != runningMajor || max(minor-runningMinor, runningMinor-minor) > otherMinors:
		return fmt.Sprintf("it is more than %d minor version away from the kubelet that runs", otherMinors)
	}
	return ""
}

// checkOffer inspects the kubelet of the image.
func (i *Installer) checkOffer(ctx context.Context, v *view) (err error) {
	if v.installerSum, err = host.Checksum(i.Program); err != nil {
		return err
	}
	arch, err := elfArchitecture(i.Kubelet)
	if err != nil {
		v.refuse(rollout.ReasonBuild, "the image has no kubelet: %v", err)
		return nil
	}
	if v.offered.SHA256, err = host.Checksum(i.Kubelet); err != nil {
		return err
	}
	if arch != architecture() {
		v.refuse(rollout.ReasonArchitecture, "the image's kubelet is for %s, the node is %s", arch, architecture())
		return nil
	}
	if want := i.Request.KubeletChecksums[arch]; len(i.Request.KubeletChecksums) > 0 && want != v.offered.SHA256 {
		if want == "" {
			want = "none for " + arch
		}
		v.refuse(rollout.ReasonBuild, "the image's kubelet has the checksum %s, the request names %s: was the tag of the image moved? Start the roll-out again", v.offered.SHA256, want)
	}
	if v.offered.Version, err = i.Version(ctx, "", i.Kubelet); err != nil {
		v.refuse(rollout.ReasonBuild, "the image's kubelet cannot be run: %v", err)
		return nil
	}
	if want := i.Request.KubeletVersion; want != "" && want != v.offered.Version {
		v.refuse(rollout.ReasonBuild, "the image's kubelet is %s, the request names %s", v.offered.Version, want)
	}
	if !strings.Contains(v.offered.Version, "+guard.") {
		v.refuse(rollout.ReasonBuild, "the image's kubelet is %s, which has no guard", v.offered.Version)
	}
	if err := i.checkSpace(v); err != nil {
		v.refuse(rollout.ReasonSpace, "%v", err)
	}
	offered, err := version.ParseSemantic(v.offered.Version)
	if err != nil {
		v.refuse(rollout.ReasonVersion, "the version %q of the image's kubelet is not understood", v.offered.Version)
		return nil
	}
	if v.stock.Version != "" {
		stock, err := version.ParseSemantic(v.stock.Version)
		switch {
		case err != nil:
			v.refuse(rollout.ReasonVersion, "the version %q of the node's kubelet is not understood", v.stock.Version)
		case stock.Major() != offered.Major() || stock.Minor() != offered.Minor():
			v.refuse(rollout.ReasonVersion, "the image's kubelet is %s, the node's own (%s) is %s: another minor version. Use an image for v%d.%d, or install v%d.%d as the node's own kubelet first",
				v.offered.Version, v.stock.Path, v.stock.Version, stock.Major(), stock.Minor(), offered.Major(), offered.Minor())
		}
	}
	text, err := i.Cluster.ServerVersion(ctx)
	if err != nil {
		return err
	}
	server, err := version.ParseSemantic(text)
	switch {
	case err != nil:
		v.refuse(rollout.ReasonVersion, "the version %q of the API server is not understood", text)
	case offered.Major() != server.Major() || offered.Minor() > server.Minor():
		v.refuse(rollout.ReasonVersion, "the image's kubelet is %s, newer than the API server (%s): upgrade the control plane first", v.offered.Version, text)
	}
	i.checkConfiguration(ctx, v)
	return nil
}

// checkConfiguration refuses a kubelet that would not start with the flags and the
// configuration of the one that runs. Where that cannot be found out, the change itself
// shows it, and is rolled back.
func (i *Installer) checkConfiguration(ctx context.Context, v *view) {
	if len(v.process.Arguments) == 0 {
		return
	}
	why, err := i.Accepts(ctx, i.Root, i.Kubelet, v.process)
	switch {
	case err != nil:
		klog.InfoS("It is not known whether the image's kubelet accepts the configuration of the node's", "err", err)
	case why != "":
		v.refuse(rollout.ReasonConfig, "the image's kubelet (%s) would not start with the flags and the configuration of the node's kubelet: %s. Change those first, and restart the kubelet", v.offered.Version, why)
	}
}

// checkSpace returns an error unless there is room for the programs, and for the small files
// that must be written to roll a change back.
func (i *Installer) checkSpace(v *view) error {
	for name, need := range map[string]uint64{rollout.DropIn: smallSpace, rollout.StateDir + "/x": smallSpace, runtimeUnits + "/x": runSpace} {
		system, err := i.Root.FileSystem(name)
		if err != nil {
			return err
		}
		if system.Free < need {
			return fmt.Errorf("%s has %d MiB free, %d are needed", path.Dir(name), system.Free>>20, need>>20)
		}
	}
	var need uint64
	for source, name := range map[string]string{
		i.Kubelet: programPath(v.offered.SHA256, "kubelet"),
		i.Program: programPath(v.installerSum, rollout.Name),
	} {
		if i.Root.Exists(name) {
			continue
		}
		info, err := os.Stat(source)
		if err != nil {
			return err
		}
		need += uint64(info.Size())
	}
	if need == 0 {
		return nil
	}
	need += spareSpace
	system, err := i.Root.FileSystem(rollout.InstallDir + "/x")
	if err != nil {
		return err
	}
	if system.Free < need {
		return fmt.Errorf("%s has %d MiB free, %d are needed", rollout.InstallDir, system.Free>>20, need>>20)
	}
	why, err := i.belowThreshold(v, system, need)
	if err == nil && why != "" {
		err = errors.New(why)
	}
	return err
}

// folders of what the kubelet's signals are about. The runtime does not report where it keeps
// images; these are the usual places.
func folders(process host.Process) map[string][]string {
	root, _ := process.Flag("--root-dir")
	if root == "" {
		root = "/var/lib/kubelet"
	}
	return map[string][]string{
		"nodefs.available":  {root},
		"imagefs.available": {"/var/lib/containerd", "/var/lib/containers", "/var/lib/docker"},
	}
}

// defaultThresholds are the kubelet's, for one that does not report any.
var defaultThresholds = map[string]string{"nodefs.available": "10%", "imagefs.available": "15%"}

// belowThreshold explains why the kubelet would evict pods when so many bytes more are used in
// the file system of InstallDir; "" when it would not.
func (i *Installer) belowThreshold(v *view, system host.FileSystem, need uint64) (string, error) {
	hard := v.kubeletConfig.EvictionHard
	if hard == nil {
		hard = defaultThresholds
	}
	for _, signal := range []string{"nodefs.available", "imagefs.available"} {
		same := false
		for _, dir := range folders(v.process)[signal] {
			if !i.Root.Exists(dir) {
				continue
			}
			other, err := i.Root.FileSystem(dir + "/x")
			if err != nil {
				return "", err
			}
			same = same || other.Device == system.Device
		}
		for _, thresholds := range []map[string]string{hard, v.kubeletConfig.EvictionSoft} {
			text, set := thresholds[signal]
			if !same || !set {
				continue
			}
			bytes, err := thresholdBytes(text, system.Size)
			if err != nil {
				return "", fmt.Errorf("the kubelet's eviction threshold of %s: %w", signal, err)
			}
			if system.Free < need+bytes {
				return fmt.Sprintf("%s has %d MiB free; with %d MiB less it is below the kubelet's eviction threshold (%s: %s), and pods would be evicted", rollout.InstallDir, system.Free>>20, need>>20, signal, text), nil
			}
		}
	}
	return "", nil
}

// thresholdBytes reads an eviction threshold, which is a quantity or a share of the size.
func thresholdBytes(text string, size uint64) (uint64, error) {
	if share, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(share, 64)
		if err != nil || percent < 0 || percent > 100 {
			return 0, fmt.Errorf("%q is no share from 0%% to 100%%", text)
		}
		return uint64(percent / 100 * float64(size)), nil
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil || quantity.Sign() < 0 {
		return 0, fmt.Errorf("%q is neither a quantity nor a share", text)
	}
	return uint64(quantity.Value()), nil
}

func programPath(checksum, name string) string {
	return path.Join(rollout.InstallDir, checksum, name)
}

// want finds the drop-in that the request needs.
func (i *Installer) want(v *view) error {
	if !i.Request.Target.Guarded() {
		return nil
	}
	data, err := i.Request.GuardConfiguration()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	v.configData = data
	v.config = path.Join(rollout.ConfigDir, hex.EncodeToString(sum[:])+".yaml")
	v.program = programPath(v.offered.SHA256, "kubelet")
	text, err := unit.DropIn(v.command, v.program, v.config)
	if err != nil {
		return err
	}
	wanted := string(text)
	v.wanted = &wanted
	return nil
}

// checkHeldPods refuses what would release held pods that nobody has agreed to. Not only
// another mode does that: with another configuration a pod may be no longer protected.
func (i *Installer) checkHeldPods(v *view) {
	if i.Request.Target == rollout.Observe {
		return
	}
	if i.Request.Target == rollout.Enforce && v.config != "" && configurationOf(v.dropIn) == v.config {
		return
	}
	if v.unknown != nil {
		v.refuse(rollout.ReasonHeld, "the guarded kubelet does not answer, so that nobody knows which pods it holds, and nobody can have agreed that they stop: fix it first (systemctl restart kubelet on the node) (%v)", v.unknown)
	} else if others := i.notReleased(v); len(others) > 0 {
		v.refuse(rollout.ReasonHeld, "%d pods are held and would stop with what is requested: %s. Nobody was shown them and agreed to it. See kubectl guard holds; fix the reasons, release the pods, or give the same command again, which lists them",
			len(others), list(others))
	}
}

// notReleased returns namespace/name of the held pods that the request does not release.
func (i *Installer) notReleased(v *view) []string {
	var names []string
	for n, uid := range v.held {
		if !slices.Contains(i.Request.ReleaseHeldUIDs, uid) {
			names = append(names, v.heldPods[n])
		}
	}
	return names
}

func (v *view) heldAndProtected() {
	if v.answer.Pods == nil {
		return
	}
	for _, pod := range v.answer.Pods.Items {
		if pod.State == guard.Held {
			v.held, v.heldPods = append(v.held, pod.UID), append(v.heldPods, pod.Namespace+"/"+pod.Name)
		}
		if pod.State == guard.Held || pod.State == guard.Protected {
			v.protected++
		}
	}
}

// kubeletAddress is where the API server reaches the kubelet, too.
func kubeletAddress(node *corev1.Node) string {
	ip := "127.0.0.1"
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			ip = address.Address
			break
		}
	}
	port := node.Status.DaemonEndpoints.KubeletEndpoint.Port
	if port == 0 {
		port = 10250
	}
	return net.JoinHostPort(ip, strconv.Itoa(int(port)))
}

func hasCondition(node *corev1.Node, kind corev1.NodeConditionType) bool {
	_, condition := nodeutil.GetNodeCondition(&node.Status, kind)
	return condition != nil && condition.Status == corev1.ConditionTrue
}

func nodeReady(node *corev1.Node) bool { return hasCondition(node, corev1.NodeReady) }

// pressure returns the conditions that say what the node is short of; "" for none.
func pressure(node *corev1.Node) string {
	var short []string
	for _, kind := range []corev1.NodeConditionType{corev1.NodeDiskPressure, corev1.NodeMemoryPressure, corev1.NodePIDPressure} {
		if hasCondition(node, kind) {
			short = append(short, string(kind))
		}
	}
	return strings.Join(short, ", ")
}

var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_PPC64: "ppc64le", elf.EM_S390: "s390x"}

// elfArchitecture returns the architecture of a program, as Go names it.
func elfArchitecture(path string) (string, error) {
	file, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	return cmp.Or(architectures[file.Machine], file.Machine.String()), nil
}

// list joins at most 20 names.
func list(names []string) string {
	text := strings.Join(atMost20(names), ", ")
	if more := len(names) - 20; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func atMost20(names []string) []string { return names[:min(len(names), 20)] }
