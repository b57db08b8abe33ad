// Package unit reads the command of a systemd service out of its unit files and
// writes the drop-in that replaces its program.
//
// The text of the files is what counts. systemd's own view of a command (the property
// ExecStart on D-Bus) has specifiers expanded and quotes removed, so that it cannot be
// written back. Everything that is not certain is an error: a kubelet that is started
// without its arguments takes the pods of the node for orphans.
package unit

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// Command is an ExecStart= of a service.
type Command struct {
	// File that sets it.
	File string
	// Prefix are the characters before the program that systemd gives a meaning, such
	// as - or +.
	Prefix string
	// Program is the absolute path of the program.
	Program string
	// Arguments are the rest as written, with continued lines joined.
	Arguments string
}

// GuardFlag is the flag of the guarded kubelet that names its configuration.
const GuardFlag = "--guard-config"

// HasGuard reports whether the command names a configuration of the guard.
func (c Command) HasGuard() bool { return strings.Contains(c.Arguments, GuardFlag) }

// ExecStart returns the only command that the service has when the files are read in
// the given order, the unit first and then its drop-ins. The error names the file.
func ExecStart(files []string, read func(string) ([]byte, error)) (Command, error) {
	type setting struct{ file, text string }
	var commands []setting
	for _, file := range files {
		data, err := read(file)
		if err != nil {
			return Command{}, fmt.Errorf("read the unit file %s: %w", file, err)
		}
		values, err := serviceValues(data, "ExecStart")
		if err != nil {
			return Command{}, fmt.Errorf("%s: %w", file, err)
		}
		for _, value := range values {
			if value == "" {
				commands = nil
				continue
			}
			commands = append(commands, setting{file, value})
		}
	}
	switch len(commands) {
	case 0:
		return Command{}, errors.New("the unit has no ExecStart=")
	case 1:
	default:
		return Command{}, fmt.Errorf("%s: the unit has %d ExecStart= commands; one is expected", commands[len(commands)-1].file, len(commands))
	}
	command, err := parseCommand(commands[0].text)
	if err != nil {
		return Command{}, fmt.Errorf("%s: ExecStart=%s: %w", commands[0].file, commands[0].text, err)
	}
	command.File = commands[0].file
	return command, nil
}

// serviceValues returns the values of a setting in the sections [Service], in order.
func serviceValues(data []byte, name string) ([]string, error) {
	var values []string
	section := ""
	joined, continued := "", false
	for line := range bytes.Lines(data) {
		text := strings.TrimRight(string(line), "\r\n")
		trimmed := strings.TrimSpace(text)
		// A comment between continued lines does not end them.
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}
		if continued {
			joined += " " + strings.TrimSpace(strings.TrimSuffix(text, `\`))
		} else {
			joined = strings.TrimSpace(strings.TrimSuffix(text, `\`))
		}
		if continued = strings.HasSuffix(text, `\`); continued {
			continue
		}
		if strings.HasPrefix(joined, "[") {
			if !strings.HasSuffix(joined, "]") {
				return nil, fmt.Errorf("the section %q is not closed", joined)
			}
			section = joined
			continue
		}
		key, value, ok := strings.Cut(joined, "=")
		if ok && section == "[Service]" && strings.TrimSpace(key) == name {
			values = append(values, strings.TrimSpace(value))
		}
	}
	if continued {
		return nil, errors.New("the last line ends with a backslash")
	}
	return values, nil
}

func parseCommand(text string) (Command, error) {
	rest := strings.TrimLeft(text, "-@:+!|")
	command := Command{Prefix: text[:len(text)-len(rest)]}
	if strings.Contains(command.Prefix, "@") {
		return Command{}, errors.New("the prefix @ gives the program another name, which is not supported")
	}
	if strings.HasPrefix(rest, `"`) || strings.HasPrefix(rest, "'") {
		program, after, ok := strings.Cut(rest[1:], rest[:1])
		if !ok {
			return Command{}, errors.New("the quote of the program is not closed")
		}
		command.Program, rest = program, after
	} else {
		command.Program, rest = rest, ""
		if i := strings.IndexAny(command.Program, " \t"); i >= 0 {
			command.Program, rest = command.Program[:i], command.Program[i:]
		}
	}
	command.Arguments = strings.TrimSpace(rest)
	switch {
	case !path.IsAbs(command.Program):
		return Command{}, fmt.Errorf("the program %q is not an absolute path", command.Program)
	case strings.ContainsAny(command.Program, `%$\`):
		return Command{}, fmt.Errorf("the program %q has specifiers or variables", command.Program)
	case strings.HasPrefix(command.Arguments, "; "), strings.Contains(command.Arguments, " ; "), strings.HasSuffix(command.Arguments, " ;"):
		return Command{}, errors.New("more than one command in a line")
	}
	return command, nil
}

// marker is in the first line of a drop-in that DropIn wrote.
const marker = "# Written by guard-installer"

// DropIn returns the drop-in that runs another program with the arguments of the
// command and the configuration of the guard. The paths may not have characters that
// systemd gives a meaning.
func DropIn(command Command, program, configuration string) ([]byte, error) {
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
	return fmt.Appendf(nil, `%s: it belongs to a roll-out of Kubelet Guard. Remove it with
# kubectl guard rollout. In an emergency: remove this file, then systemctl daemon-reload
# and systemctl restart kubelet. That starts the kubelet of
# %s again.
[Service]
ExecStart=
ExecStart=%s%s %s%s=%s
`, marker, command.File, command.Prefix, program, arguments, GuardFlag, configuration), nil
}

// Ours reports whether DropIn wrote the file.
func Ours(data []byte) bool { return bytes.HasPrefix(data, []byte(marker)) }

// Base returns the files without the drop-in at the path, and the first of those that
// systemd reads behind it and that sets ExecStart= itself; "" when there is none.
// Drop-ins are read in the order of their names, whatever their folders.
func Base(files []string, dropIn string, read func(string) ([]byte, error)) (base []string, later string, err error) {
	for i, file := range files {
		if file == dropIn {
			continue
		}
		base = append(base, file)
		if i == 0 || later != "" || filepath.Base(file) <= filepath.Base(dropIn) {
			continue
		}
		data, err := read(file)
		if err != nil {
			return nil, "", fmt.Errorf("read the unit file %s: %w", file, err)
		}
		values, err := serviceValues(data, "ExecStart")
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		if len(values) > 0 {
			later = file
		}
	}
	return base, later, nil
}
