package unit

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Verdict is what the files of a kubelet.service say about an exchange of its kubelet.
type Verdict struct {
	// Command is what the unit runs without our drop-in. It is empty where it is not
	// understood; Refusals say why.
	Command Command
	// KillMode as systemd takes it, such as control-group.
	KillMode string
	// Refusals are why the kubelet is not to be exchanged, each with the line and its
	// file. The kubelet may be exchanged when there are none.
	Refusals []string
}

// Understood reports whether the command is known.
func (v Verdict) Understood() bool { return v.Command.Program != "" }

// Judge reads the files of the unit, the unit first and then its drop-ins, without the
// drop-in at the path. It refuses what it does not understand, and what would stop
// containers or the node when the kubelet is restarted or does not start.
func Judge(files []string, dropIn string, read func(string) ([]byte, error)) Verdict {
	refused := func(err error) Verdict {
		return Verdict{Refusals: []string{fmt.Sprintf("kubelet.service is not understood: %v", err)}}
	}
	base, later, err := Base(files, dropIn, read)
	if err != nil {
		return refused(err)
	}
	all, err := readSettings(base, read)
	if err != nil {
		return refused(err)
	}
	verdict := Verdict{KillMode: "control-group", Refusals: dangers(all)}
	if mode, ok := last(all, "KillMode", service); ok {
		verdict.KillMode = mode.value
	}
	if later != "" {
		verdict.Refusals = append(verdict.Refusals, fmt.Sprintf("%s sets ExecStart= and its name sorts behind %s, which would have no effect: rename it so that it comes before", later, path.Base(dropIn)))
	}
	command, err := ExecStart(base, read)
	if err != nil {
		verdict.Refusals = append(verdict.Refusals, refused(err).Refusals...)
		return verdict
	}
	if !strings.HasPrefix(path.Base(command.Program), "kubelet") {
		verdict.Refusals = append(verdict.Refusals, fmt.Sprintf("%s: ExecStart=%s%s %s: it runs %s, which is not named like a kubelet (a wrapper or a script?): name the kubelet there, or keep the node out",
			command.File, command.Prefix, command.Program, command.Arguments, command.Program))
		return verdict
	}
	verdict.Command = command
	return verdict
}

// actions are the settings that have systemd do something to the node itself.
var actions = []string{"FailureAction", "SuccessAction", "StartLimitAction", "JobTimeoutAction"}

// dangers returns the lines that would stop containers or the node when the kubelet is
// restarted, or does not start.
func dangers(all []setting) []string {
	var found []string
	danger := func(s setting, why string) {
		found = append(found, fmt.Sprintf("%s: %s: %s", s.file, s, why))
	}
	for _, key := range []string{"ExecStop", "ExecStopPost"} {
		for _, s := range list(all, key) {
			switch {
			case stopsContainers(s.value):
				danger(s, "it stops containers whenever the kubelet stops, also in a restart. Remove the line")
			case !harmless(s.value):
				danger(s, "it runs whenever the kubelet stops, also in a restart, and it is not known that it leaves containers alone. Remove the line, or move it to a unit of its own")
			}
		}
	}
	for _, key := range []string{"ExecCondition", "ExecStartPre", "ExecStartPost"} {
		for _, s := range list(all, key) {
			if stopsContainers(s.value) {
				danger(s, "it stops containers whenever the kubelet starts, also in a restart. Remove the line")
			}
		}
	}
	for _, key := range actions {
		if s, ok := last(all, key, unitFile, service); ok && s.value != "none" {
			danger(s, "systemd does this to the node when the kubelet ends or does not start. Remove the line")
		}
	}
	for _, s := range all {
		if s.section != unitFile || s.value == "" {
			continue
		}
		switch s.key {
		case "OnFailure", "OnSuccess":
			danger(s, "it starts another unit when the kubelet fails or stops, and it is not known that this one leaves containers and the node alone. Remove the line")
		case "PropagatesStopTo":
			if units := RuntimeUnits(strings.Fields(s.value)); len(units) > 0 {
				danger(s, "the container runtime would be stopped with the kubelet. Remove the line")
			}
		}
	}
	if s, ok := last(all, "KillMode", service); ok && s.value == "none" {
		danger(s, "the old kubelet would go on next to the new one. Remove the line, or use KillMode=process")
	}
	for _, key := range []string{"RootDirectory", "RootImage"} {
		if s, ok := last(all, key, service); ok && s.value != "/" {
			danger(s, "the kubelet runs in a root of its own, where another program would be looked for")
		}
	}
	return found
}

const stopWords = `\b(stop|stopp|rm|rmp|kill|down|prune|restart|delete)\b`

// stopping are commands that stop containers, their runtime or the node.
var stopping = []*regexp.Regexp{
	regexp.MustCompile(`\b(crictl|docker|podman|nerdctl|ctr|runc|crun)\b.*` + stopWords),
	regexp.MustCompile(`\b(systemctl|service)\b.*\b(stop|restart|try-restart|kill)\b.*\b(containerd|docker|cri-docker|cri-?o|podman|kubepods)`),
	regexp.MustCompile(`\bservice\s+(containerd|docker|cri-docker|cri-?o|podman)\S*\s+(stop|restart)\b`),
	regexp.MustCompile(`\bsystemctl\b.*\b(reboot|soft-reboot|poweroff|halt|kexec|isolate|emergency|rescue)\b`),
	regexp.MustCompile(`(^|[\s;&|'"/])(reboot|poweroff|halt|shutdown|killall|pkill|k3s-killall\.sh|rke2-killall\.sh)($|[\s;&|'"])`),
	regexp.MustCompile(`\bkubeadm\b.*\breset\b`),
}

func stopsContainers(command string) bool {
	return slices.ContainsFunc(stopping, func(r *regexp.Regexp) bool { return r.MatchString(command) })
}

// harmless reports whether a command certainly stops nothing but the kubelet.
func harmless(command string) bool {
	words := unquotedWords(strings.TrimLeft(command, "-@:+!|"))
	if len(words) == 0 {
		return true
	}
	if slices.Contains(words, ";") {
		return false
	}
	switch path.Base(words[0]) {
	case "true", "echo", "logger", "sleep", "printf":
		return true
	case "kill":
		// Only the kubelet itself.
		for _, word := range words[1:] {
			if word != "$MAINPID" && word != "${MAINPID}" && word != "-s" && !signal.MatchString(word) {
				return false
			}
		}
		return true
	}
	return false
}

var signal = regexp.MustCompile(`^-?(SIG)?(HUP|INT|QUIT|KILL|TERM|1|2|3|9|15)$`)

var (
	runtimeUnit    = regexp.MustCompile(`^(containerd|docker|cri-docker|crio|cri-o|podman|k3s|rke2|kubepods|cri-containerd-|libpod-|crio-)`)
	runtimeProcess = regexp.MustCompile(`^(containerd|docker|cri-docker|crio|conmon|podman|runc|crun|kata|firecracker|runsc)`)
)

// RuntimeUnits returns those of the units that are a container runtime or containers.
func RuntimeUnits(units []string) []string {
	return matching(units, runtimeUnit)
}

// RuntimeProcesses returns those of the processes, by their names, that are a container
// runtime or hold a container.
func RuntimeProcesses(names []string) []string {
	return matching(names, runtimeProcess)
}

func matching(names []string, pattern *regexp.Regexp) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !pattern.MatchString(name) })
}

// Alive returns why a restart of the kubelet would stop containers, by what systemd and
// the kernel say: stopped are the units that systemd stops with kubelet.service, and
// processes the names of those in its control group.
func (v Verdict) Alive(stopped, processes []string) []string {
	var refusals []string
	if units := RuntimeUnits(stopped); len(units) > 0 {
		refusals = append(refusals, fmt.Sprintf("systemd stops %s whenever kubelet.service stops, also in a restart (PartOf=, BindsTo= or Requires= there, or PropagatesStopTo= here). Remove that line", strings.Join(units, ", ")))
	}
	if found := RuntimeProcesses(processes); len(found) > 0 && v.KillMode != "process" {
		refusals = append(refusals, fmt.Sprintf("%s run in the control group of kubelet.service, and its KillMode=%s has systemd kill them in a restart. Set KillMode=process in a drop-in", strings.Join(found, ", "), v.KillMode))
	}
	return refusals
}
