package admission

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Mode is what a refusal does. The zero value is invalid.
type Mode string

const (
	// Enforce refuses.
	Enforce Mode = "Enforce"
	// Audit decides the same, warns and lets the request pass.
	Audit Mode = "Audit"
)

// ParseMode returns the mode of the name.
func ParseMode(name string) (Mode, error) {
	switch mode := Mode(name); mode {
	case Enforce, Audit:
		return mode, nil
	}
	return "", fmt.Errorf("unknown mode %q; the modes are %s and %s", name, Enforce, Audit)
}

// Modes is the mode of each rule.
type Modes struct {
	// Default applies to the rules that ByRule does not name.
	Default Mode
	ByRule  map[RuleName]Mode
}

// Of returns the mode of the rule.
func (m Modes) Of(rule RuleName) Mode {
	if mode, ok := m.ByRule[rule]; ok {
		return mode
	}
	return m.Default
}

// ParseModes returns the modes of a default and of a mode by rule name.
func ParseModes(byDefault string, byRule map[string]string) (Modes, error) {
	mode, err := ParseMode(byDefault)
	if err != nil {
		return Modes{}, err
	}
	modes := Modes{Default: mode, ByRule: make(map[RuleName]Mode, len(byRule))}
	for _, name := range slices.Sorted(maps.Keys(byRule)) {
		rule := RuleName(name)
		if !slices.Contains(RuleNames(), rule) {
			return Modes{}, fmt.Errorf("unknown rule %q; the rules are %s", name, join(RuleNames()))
		}
		if modes.ByRule[rule], err = ParseMode(byRule[name]); err != nil {
			return Modes{}, fmt.Errorf("rule %s: %w", name, err)
		}
	}
	return modes, nil
}

func join[T ~string](names []T) string {
	texts := make([]string, len(names))
	for i, name := range names {
		texts[i] = string(name)
	}
	return strings.Join(texts, ", ")
}
