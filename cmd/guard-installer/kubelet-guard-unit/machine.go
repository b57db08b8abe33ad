package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"sigs.k8s.io/yaml"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
)

const (
	kubeletUnit    = "kubelet.service"
	defaultRootDir = "/var/lib/kubelet"
)

// machine is the node, or the image of one.
type machine struct {
	root host.Root
	// state returns the state of kubelet.service; it is empty where systemd does not run.
	state       func() (systemd.Unit, error)
	out, errOut io.Writer
}

// dropIn returns the drop-in for the unit as it is. The error has every reason why there
// is none, a line each.
func (m *machine) dropIn() ([]byte, error) {
	files, err := unit.Files(m.root, kubeletUnit)
	if errors.Is(err, unit.ErrNoUnit) {
		return nil, fmt.Errorf("this machine has no %s: install the kubelet and its unit first; a kubelet that something else runs (k3s, RKE2, a snap, Talos) cannot be exchanged by this package", kubeletUnit)
	}
	if err != nil {
		return nil, err
	}
	var refusals []string
	for _, file := range files {
		data, err := m.root.Read(file)
		if err != nil {
			return nil, fmt.Errorf("read the unit file %s: %w", file, err)
		}
		if unit.Ours(data) {
			return nil, fmt.Errorf("%s: this node belongs to a roll-out, whose kubelet would run on: remove the node from it first (kubectl guard rollout uninstall), or remove this package", file)
		}
	}
	if data, err := m.root.Read(unit.PackageDropIn); err == nil && !unit.OfPackage(data) {
		refusals = append(refusals, fmt.Sprintf("%s was not written by this package: give it another name", unit.PackageDropIn))
	}
	judged := unit.Judge(files, unit.PackageDropIn, m.root.Read)
	refusals = append(refusals, judged.Refusals...)
	if judged.Understood() {
		refusals = append(refusals, m.living(judged)...)
		if program, err := elf.Open(m.root.Path(judged.Command.Program)); err == nil {
			_ = program.Close()
		} else {
			refusals = append(refusals, fmt.Sprintf("%s: ExecStart= runs %s, which is not a program (a script?): %v", judged.Command.File, judged.Command.Program, err))
		}
	}
	if len(refusals) > 0 {
		return nil, errors.New(strings.Join(refusals, "\n"))
	}
	return unit.ForPackage(judged.Command)
}

// living inspects what runs.
func (m *machine) living(judged unit.Verdict) []string {
	state, err := m.state()
	if err != nil {
		return []string{fmt.Sprintf("it is not known what systemd would stop with %s: %v", kubeletUnit, err)}
	}
	var processes []string
	if state.ControlGroup != "" {
		if processes, err = m.root.InControlGroup(state.ControlGroup); err != nil {
			return []string{err.Error()}
		}
	}
	return judged.Alive(state.StoppedWith, processes)
}

func (m *machine) show() error {
	data, err := m.dropIn()
	if err != nil {
		return err
	}
	_, err = m.out.Write(data)
	return err
}

func (m *machine) apply() error {
	data, err := m.dropIn()
	if err != nil {
		// One that is there stays: the node is guarded.
		return fmt.Errorf("%w\nREFUSED: %s was not written, and nothing was changed. kubectl get nodes shows which kubelet runs", err, unit.PackageDropIn)
	}
	if now, err := m.root.Read(unit.PackageDropIn); err == nil && string(now) == string(data) {
		return nil
	}
	if err := m.root.Write(unit.PackageDropIn, data, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(m.out, "kubelet-guard: %s has the command of the unit now\n", unit.PackageDropIn)
	return nil
}

// check is called at every start of the kubelet. What it says is in the journal of
// kubelet.service.
func (m *machine) check() error {
	written, err := m.root.Read(unit.PackageDropIn)
	if err != nil {
		return err
	}
	files, err := unit.Files(m.root, kubeletUnit)
	if err != nil {
		return err
	}
	judged := unit.Judge(files, unit.PackageDropIn, m.root.Read)
	var warnings []string
	warnings = append(warnings, judged.Refusals...)
	if judged.Understood() {
		now, err := unit.ForPackage(judged.Command)
		if err != nil {
			return err
		}
		if why := unit.Difference(written, now); why != "" {
			warnings = append(warnings, fmt.Sprintf("the command of %s has changed since the drop-in %s was written: %s. The kubelet starts with the earlier arguments", kubeletUnit, unit.PackageDropIn, why))
		}
	}
	if len(warnings) == 0 {
		return nil
	}
	return fmt.Errorf("%s\nTo have the kubelet start with those of now: %s apply, then systemctl daemon-reload and systemctl restart kubelet", strings.Join(warnings, "\n"), unit.PackageCommand)
}

// remove removes the drop-in. It warns and does not refuse, because a package that
// cannot be removed helps nobody.
func (m *machine) remove() error {
	m.warn()
	data, err := m.root.Read(unit.PackageDropIn)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !unit.OfPackage(data):
		fmt.Fprintf(m.errOut, "kubelet-guard: WARNING: %s was not written by this package and is left. Without the package the kubelet does not start with it\n", unit.PackageDropIn)
		return nil
	}
	if err := m.root.Remove(unit.PackageDropIn); err != nil {
		return err
	}
	return m.root.RemoveEmpty(path.Dir(unit.PackageDropIn))
}

// warn says how many protected pods the node has.
func (m *machine) warn() {
	dir, known := m.stateDir()
	names, err := m.root.Folder(path.Join(dir, "pods"))
	pods := 0
	for _, name := range names {
		if strings.HasSuffix(name, ".pod") {
			pods++
		}
	}
	switch {
	case err != nil:
		fmt.Fprintf(m.errOut, "kubelet-guard: WARNING: it is not known how many protected pods this node has: %v. Those that are held (kubectl guard holds) are stopped by the stock kubelet as soon as kubelet.service is restarted, or this machine\n", err)
	case pods > 0:
		fmt.Fprintf(m.errOut, "kubelet-guard: WARNING: this node has %d protected pods (%s). Those among them that are held now (kubectl guard holds) are stopped by the stock kubelet as soon as kubelet.service is restarted, or this machine\n", pods, dir)
	case !known:
		fmt.Fprintf(m.errOut, "kubelet-guard: WARNING: the kubelet does not run, so its --root-dir is not known. There are no protected pods in %s; if it is another folder, see kubectl guard holds before kubelet.service is started\n", dir)
	}
}

// stateDir returns the state directory of the guard: that of its configuration, or a
// folder of the root directory of the kubelet that runs. known is false where none runs
// and the default was taken.
func (m *machine) stateDir() (dir string, known bool) {
	config, rootDir := unit.PackageConfiguration, defaultRootDir
	if state, err := m.state(); err == nil && state.MainPID > 0 {
		if process, err := m.root.Process(state.MainPID); err == nil {
			known = true
			if value, ok := process.Flag("--root-dir"); ok && path.IsAbs(value) {
				rootDir = value
			}
			if value, ok := process.Flag(unit.GuardFlag); ok && value != "" {
				config = value
			}
		}
	}
	var configuration struct {
		StateDir string `json:"stateDir"`
	}
	if data, err := m.root.Read(config); err == nil && yaml.Unmarshal(data, &configuration) == nil && configuration.StateDir != "" {
		return configuration.StateDir, true
	}
	return path.Join(rootDir, "guard"), known
}
