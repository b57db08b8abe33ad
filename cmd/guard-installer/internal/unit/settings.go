package unit

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Sections of a unit file that are read.
const (
	service  = "[Service]"
	unitFile = "[Unit]"
)

// setting is an assignment of a unit file.
type setting struct{ file, section, key, value string }

// String is the line as written, with continued lines joined.
func (s setting) String() string { return s.key + "=" + s.value }

// readSettings returns the assignments of the files, one after the other. The error names the
// file.
func readSettings(files []string, read func(string) ([]byte, error)) ([]setting, error) {
	var all []setting
	for _, file := range files {
		data, err := read(file)
		if err != nil {
			return nil, fmt.Errorf("read the unit file %s: %w", file, err)
		}
		settings, err := parse(file, data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, settings...)
	}
	return all, nil
}

// list returns the values of a setting of [Service] that is a list: an empty value
// removes those before it.
func list(all []setting, key string) []setting {
	var values []setting
	for _, s := range all {
		switch {
		case s.section != service || s.key != key:
		case s.value == "":
			values = nil
		default:
			values = append(values, s)
		}
	}
	return values
}

// last returns the value of a setting that has one: the last counts. ok is false where
// no file has it, or where the last value is empty, which is the default.
func last(all []setting, key string, sections ...string) (found setting, ok bool) {
	for _, s := range all {
		for _, section := range sections {
			if s.section == section && s.key == key {
				found, ok = s, s.value != ""
			}
		}
	}
	return found, ok
}

// parse reads a unit file as systemd does. What systemd ignores is ignored: lines that
// assign nothing, sections of other names, and everything behind a section that is not
// closed. A KubeletConfiguration in a folder of drop-ins is such a file.
func parse(file string, data []byte) ([]setting, error) {
	var settings []setting
	section, broken := "", ""
	joined, continued := "", false
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		text := strings.TrimRight(string(line), "\r\n")
		trimmed := strings.TrimSpace(text)
		// A comment between continued lines does not end them.
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}
		if endsWithBackslash(trimmed) && !endsWithBackslash(text) {
			return nil, fmt.Errorf("blanks follow the backslash at the end of %q: versions of systemd differ in whether the line is continued; remove the blanks", trimmed)
		}
		more := endsWithBackslash(text)
		if more {
			text = strings.TrimSuffix(text, `\`)
		}
		if continued {
			joined += " " + strings.TrimSpace(text)
		} else {
			joined = strings.TrimSpace(text)
		}
		if continued = more; continued {
			continue
		}
		if strings.HasPrefix(joined, "[") {
			section = joined
			if !strings.HasSuffix(joined, "]") && broken == "" {
				broken = joined
			}
			continue
		}
		key, value, ok := strings.Cut(joined, "=")
		if !ok || section != service && section != unitFile {
			continue
		}
		if broken != "" {
			return nil, fmt.Errorf("the section %q is not closed: systemd ignores the rest of the file, which has %s; close the section or remove the rest", broken, joined)
		}
		settings = append(settings, setting{file, section, strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	if continued {
		return nil, errors.New("the last line ends with a backslash")
	}
	return settings, nil
}

// endsWithBackslash reports whether the last character is a backslash that no other
// one escapes.
func endsWithBackslash(text string) bool {
	return (len(text)-len(strings.TrimRight(text, `\`)))%2 == 1
}
