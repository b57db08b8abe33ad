// Package unit reads the command of a systemd service out of its unit files and
// writes the drop-in that replaces its program.
//
// The text of the files is what counts. systemd's own view of a command (the property
// ExecStart on D-Bus) has specifiers expanded and quotes removed, so that it cannot be
// written back. Everything that is not certain is an error: a kubelet that is started
// without its arguments takes the pods of the node for orphans.
package unit

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
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
	// Needs are the variables of the command that Environment= in the files sets to
	// --config, --kubeconfig or --bootstrap-kubeconfig. When a file is replaced by one with
	// other variables they have no value any more, and a kubelet would be started without
	// its configuration. Sorted.
	Needs []string
}

// GuardFlag is the flag of the guarded kubelet that names its configuration.
const GuardFlag = "--guard-config"

// HasGuard reports whether the command names a configuration of the guard.
func (c Command) HasGuard() bool { return strings.Contains(c.Arguments, GuardFlag) }

// ExecStart returns the only command that the service has when the files are read in
// the given order, the unit first and then its drop-ins. The error names the file.
func ExecStart(files []string, read func(string) ([]byte, error)) (Command, error) {
	all, err := readSettings(files, read)
	if err != nil {
		return Command{}, err
	}
	commands := list(all, "ExecStart")
	switch len(commands) {
	case 0:
		return Command{}, errors.New("the unit has no ExecStart=")
	case 1:
	default:
		return Command{}, fmt.Errorf("%s: the unit has %d ExecStart= commands; one is expected", commands[len(commands)-1].file, len(commands))
	}
	command, err := parseCommand(commands[0].value)
	if err != nil {
		return Command{}, fmt.Errorf("%s: %s: %w", commands[0].file, commands[0], err)
	}
	command.File = commands[0].file
	command.Needs = needs(command.Arguments, list(all, "Environment"))
	return command, nil
}

// configuration finds the flags that make a kubelet one of its cluster.
var configuration = regexp.MustCompile(`(^|\s)--(config|kubeconfig|bootstrap-kubeconfig)[=\s]`)

// needs returns the variables of the arguments that Environment= sets to the
// configuration of the kubelet. Others may well be empty: an EnvironmentFile= has the
// last word.
func needs(arguments string, environment []setting) []string {
	value := map[string]string{}
	for _, s := range environment {
		for _, assignment := range unquotedWords(s.value) {
			if name, v, ok := strings.Cut(assignment, "="); ok {
				value[name] = v
			}
		}
	}
	var names []string
	for name, v := range value {
		if configuration.MatchString(v) && usesVariable(arguments, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func usesVariable(arguments, name string) bool {
	arguments = strings.ReplaceAll(arguments, "$$", "")
	if strings.Contains(arguments, "${"+name+"}") {
		return true
	}
	// Without braces a variable is a word of its own.
	return slices.Contains(unquotedWords(arguments), "$"+name)
}

// unquotedWords splits at blanks outside of quotes and removes the quotes. Escapes stay.
func unquotedWords(text string) []string {
	var words []string
	word, inWord, quote := "", false, rune(0)
	for _, r := range text {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, inWord = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if inWord {
				words = append(words, word)
			}
			word, inWord = "", false
		default:
			word += string(r)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word)
	}
	return words
}

func parseCommand(text string) (Command, error) {
	rest := strings.TrimLeft(text, "-@:+!|")
	command := Command{Prefix: text[:len(text)-len(rest)]}
	if strings.Contains(command.Prefix, "@") {
		return Command{}, errors.New("the prefix @ gives the program another name, which is not supported")
	}
	if strings.Contains(command.Prefix, "|") {
		return Command{}, errors.New("the prefix | runs the program by a shell, which is not supported")
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
	case slices.Contains(strings.Fields(command.Arguments), ";"):
		return Command{}, errors.New("more than one command in a line")
	}
	return command, nil
}

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
		all, err := readSettings([]string{file}, read)
		if err != nil {
			return nil, "", err
		}
		if slices.ContainsFunc(all, func(s setting) bool { return s.section == service && s.key == "ExecStart" }) {
			later = file
		}
	}
	return base, later, nil
}
