package node

import (
	"fmt"
	"regexp"
	"strings"

	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/rollout"
)

// checkNeighbours refuses a restart of the kubelet in which systemd would stop the
// container runtime or containers as well.
func (i *Installer) checkNeighbours(state systemd.Unit, judged unit.Verdict) []refusal {
	var processes []string
	if state.ControlGroup != "" && judged.KillMode != "process" {
		var err error
		if processes, err = i.Root.InControlGroup(state.ControlGroup); err != nil {
			return []refusal{{rollout.ReasonUnit, fmt.Sprintf("it is not known what else runs in the control group of %s, which systemd kills in a restart (KillMode=%s): %v. Set KillMode=process in a drop-in of the unit", rollout.KubeletUnit, judged.KillMode, err)}}
		}
	}
	var refusals []refusal
	for _, why := range judged.Alive(state.StoppedWith, processes) {
		refusals = append(refusals, refusal{rollout.ReasonUnit, why})
	}
	return refusals
}

// unitChanged reports how the command of the unit differs from that of the drop-in that a
// change has left, and nothing when it does not, or when it is not known: the kubelet
// that runs is not touched for it.
func (i *Installer) unitChanged(files []string, dropIn *string) string {
	if dropIn == nil {
		return ""
	}
	judged := unit.Judge(files, rollout.DropIn, i.Root.Read)
	names := ofDropIn.FindStringSubmatch(*dropIn)
	if !judged.Understood() || names == nil {
		return ""
	}
	now, err := unit.DropIn(judged.Command, names[1], names[2])
	if err != nil {
		return ""
	}
	return unit.Difference([]byte(*dropIn), now)
}

// reportUnitChange adds to the report of a node that has what was requested how the unit
// has changed since. The kubelet is not restarted for that.
func (i *Installer) reportUnitChange(report rollout.Report, files []string) rollout.Report {
	if why := i.unitChanged(files, i.finishedDropIn); why != "" {
		report.Reason = rollout.ReasonUnitChanged
		report.Message = fmt.Sprintf("%s. The command of %s has changed since: %s. The kubelet keeps its arguments until the next request, such as another image or mode", report.Message, rollout.KubeletUnit, why)
	}
	return report
}

// onlyUnitChanged reports whether the drop-in differs from what the request wants by the
// command of the unit alone, which somebody has changed after the request was done.
func (i *Installer) onlyUnitChanged(v *view) bool {
	entry, err := i.store().Read()
	return err == nil && entry != nil && entry.State == journal.Confirmed && !entry.Kept() && entry.RequestID == i.Request.ID() &&
		v.dropIn != nil && v.wanted != nil && same(v.dropIn, entry.Wanted) &&
		strings.Contains(*v.dropIn, v.program+" ") && strings.Contains(*v.dropIn, unit.GuardFlag+"="+v.config+"\n")
}

// ofDropIn finds the program and the configuration that one of our drop-ins names.
var ofDropIn = regexp.MustCompile(`(?m)^ExecStart=[^/\n]*(` + regexp.QuoteMeta(rollout.InstallDir) + `/\S+) (?:.* )?` + regexp.QuoteMeta(unit.GuardFlag) + `=(\S+)$`)
