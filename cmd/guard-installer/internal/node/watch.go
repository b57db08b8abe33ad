package node

import (
	"context"
	"fmt"

	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/rollout"
)

// watch checks a node that was done. When it was changed by hand the installer reports that
// and does no more: it never reverts an operator's fix. It queries nothing but the node, so
// that an API server that is away makes no pod unready. What is unknown is as it was.
func (i *Installer) watch(_ context.Context, s State) (*rollout.Report, error) {
	report := *s.finished
	changed := func(reason rollout.Reason, format string, arguments ...any) (*rollout.Report, error) {
		return i.refused(report, reason, "the node was done, and %s since. To restore it, delete this pod (kubectl delete pod -n %s --field-selector spec.nodeName=NODE); to keep the change, take the node out of the pool",
			fmt.Sprintf(format, arguments...), rollout.Namespace), nil
	}
	unchanged := s.dropInErr != nil || ptr.Equal(s.dropIn, s.finishedDropIn)
	if s.running.IsYes() && s.target.Guarded() && s.process.SHA256 != s.finished.Now.SHA256 {
		unchanged = false
	}
	switch {
	case !unchanged:
		report.Now = rollout.Kubelet{SHA256: s.process.SHA256}
		return changed(rollout.ReasonOtherKubelet, "someone has changed %s or its drop-ins", rollout.KubeletUnit)
	case s.intact.IsNo():
		return changed(rollout.ReasonMode, "someone has changed or removed the guard's configuration %s", configurationOf(s.finishedDropIn))
	case s.mode.IsNo():
		return changed(rollout.ReasonMode, "the guard does not run in mode %s any more", s.target.Mode())
	}
	if why := i.unitChanged(s.unit.Files, s.finishedDropIn); why != "" {
		report.Reason = rollout.ReasonUnitChanged
		report.Message = fmt.Sprintf("%s. The command of %s has changed since: %s. The kubelet keeps its arguments until the next request, such as another image or mode", report.Message, rollout.KubeletUnit, why)
	}
	return &report, nil
}

// unitChanged reports how the command of the unit differs from that of the drop-in that a
// change has left, and nothing when it does not, or when it is not known: the kubelet
// that runs is not touched for it.
func (i *Installer) unitChanged(files []string, dropIn *string) string {
	program, configuration := parseDropIn(dropIn)
	judged := unit.Judge(files, rollout.DropIn, i.Root.Read)
	if !judged.Understood() || program == "" {
		return ""
	}
	now, err := unit.DropIn(judged.Command, program, configuration)
	if err != nil {
		return ""
	}
	return unit.Difference([]byte(*dropIn), now)
}
