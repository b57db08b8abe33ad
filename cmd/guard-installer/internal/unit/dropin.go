package unit

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	// rolloutMarker is how a drop-in of a roll-out starts, packageMarker one of the
	// package.
	rolloutMarker = "# Written by guard-installer"
	packageMarker = "# Written by kubelet-guard-unit"

	// PackageDropIn is the drop-in of the package. Its name sorts behind kubeadm's
	// (10-) and before that of a roll-out (95-).
	PackageDropIn = "/etc/systemd/system/kubelet.service.d/90-kubelet-guard.conf"
	// PackageProgram is the kubelet of the package.
	PackageProgram = "/usr/bin/kubelet-guarded"
	// PackageConfiguration is the configuration of the guard in the package.
	PackageConfiguration = "/etc/kubernetes/kubelet-guard.yaml"
	// PackageCommand is the program of the package that writes and checks the drop-in.
	PackageCommand = "/usr/sbin/kubelet-guard-unit"
)

// DropIn returns the drop-in of a roll-out: it runs another program with the arguments
// of the command and the configuration of the guard. The paths may not have characters
// that systemd gives a meaning.
func DropIn(command Command, program, configuration string) ([]byte, error) {
	return dropIn(command, program, configuration, fmt.Sprintf(`%s: it belongs to a roll-out of Kubelet Guard. Remove it with
# kubectl guard rollout. In an emergency: remove this file, then systemctl daemon-reload
# and systemctl restart kubelet. That starts the kubelet of
# %s again.
`, rolloutMarker, command.File), "")
}

// ForPackage returns the drop-in of the package.
func ForPackage(command Command) ([]byte, error) {
	return dropIn(command, PackageProgram, PackageConfiguration, fmt.Sprintf(`%s when the package kubelet-guard was installed. It is
# the command of
# %s
# with another program and %s. After a change of the unit: %s apply.
`, packageMarker, command.File, GuardFlag, PackageCommand),
		"# It only says in the journal when the command of the unit has changed.\nExecStartPre=-"+PackageCommand+" check\n")
}

func dropIn(command Command, program, configuration, comment, check string) ([]byte, error) {
	for _, p := range []string{program, configuration} {
		if !path.IsAbs(p) || strings.ContainsAny(p, " \t\n\"'%$\\;") {
			return nil, fmt.Errorf("the path %q cannot be written into a unit", p)
		}
	}
	if command.HasGuard() {
		return nil, fmt.Errorf("%s: ExecStart= has %s already", command.File, GuardFlag)
	}
	arguments := command.Arguments
	if arguments != "" {
		arguments += " "
	}
	return fmt.Appendf(nil, `%s[Unit]
RequiresMountsFor=%s %s
[Service]
%s%sExecStart=
ExecStart=%s%s %s%s=%s
`, comment, path.Dir(program), path.Dir(configuration), testOf(command.Needs), check, command.Prefix, program, arguments, GuardFlag, configuration), nil
}

// testOf keeps the kubelet from starting when one of the variables has no value.
func testOf(variables []string) string {
	if len(variables) == 0 {
		return ""
	}
	var tests []string
	for _, v := range variables {
		tests = append(tests, fmt.Sprintf(`test -n "$$%s"`, v))
	}
	return fmt.Sprintf(`# The unit set these variables when this file was written. A kubelet without its
# configuration takes the pods of the node for orphans; one that does not start leaves
# them.
ExecStartPre=/bin/sh -c '%s || { echo "Kubelet Guard: not started, because kubelet.service does not set all of %s any more, which hold the configuration of the kubelet. See systemctl cat kubelet" >&2; exit 1; }'
`, strings.Join(tests, " && "), strings.Join(variables, ", "))
}

// Ours reports whether DropIn wrote the file.
func Ours(data []byte) bool { return bytes.HasPrefix(data, []byte(rolloutMarker)) }

// OfPackage reports whether ForPackage wrote the file.
func OfPackage(data []byte) bool { return bytes.HasPrefix(data, []byte(packageMarker)) }

// Difference returns how two drop-ins of the same program differ in what they start: the
// words of the command that only one has. It returns nothing where only comments differ.
func Difference(before, now []byte) string {
	words := func(data []byte) []string {
		settings, err := parse("", data)
		if err != nil {
			return nil
		}
		var all []string
		for _, s := range list(settings, "ExecStart") {
			all = append(all, strings.Fields(s.value)...)
		}
		return all
	}
	old, other := words(before), words(now)
	without := func(all, others []string) string {
		var only []string
		for _, w := range all {
			if !slices.Contains(others, w) {
				only = append(only, w)
			}
		}
		return strings.Join(only, " ")
	}
	removed, added := without(old, other), without(other, old)
	switch {
	case slices.Equal(old, other):
		return ""
	case removed == "" && added == "":
		return "the same arguments, in another order or number"
	case removed == "":
		return "the unit has " + added + " besides"
	case added == "":
		return "the unit has no " + removed + " any more"
	default:
		return "the unit has " + added + " instead of " + removed
	}
}
