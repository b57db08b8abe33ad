package vulncheck

import (
	"bytes"
	"debug/elf"
	"fmt"
	"strings"
)

// function is a vulnerable function, as govulncheck names it.
type function struct {
	pkg string
	// receiver is the type of a method, with or without the star.
	receiver string
	// name is a name, or ends with a star: all functions of the package.
	name string
}

func (f function) String() string {
	if f.receiver != "" {
		return f.pkg + "." + f.receiver + "." + f.name
	}
	return f.pkg + "." + f.name
}

// symbols are the possible names of a function in a binary. The linker escapes dots in the last
// element of a path.
func (f function) symbols() []string {
	slash := strings.LastIndex(f.pkg, "/") + 1
	pkg := f.pkg[:slash] + strings.ReplaceAll(f.pkg[slash:], ".", "%2e")
	if f.receiver == "" {
		return []string{pkg + "." + f.name}
	}
	receiver := strings.TrimPrefix(f.receiver, "*")
	return []string{pkg + "." + receiver + "." + f.name, pkg + ".(*" + receiver + ")." + f.name}
}

// functions are those of a binary, also the inlined ones, and "package.*" for each package. The
// runtime needs their names for stack traces, so that stripped binaries have them, too.
type functions map[string]bool

func readFunctions(file string) (functions, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".gopclntab")
	if section == nil {
		return nil, fmt.Errorf("%s: it has no table of functions", file)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	table := parseFunctions(data)
	if !table.has(function{pkg: "main", name: "main"}) {
		return nil, fmt.Errorf("%s: its table of functions has no main.main", file)
	}
	return table, nil
}

// parseFunctions returns the names in a table, which are between zero bytes. Behind that of a
// generic function are its types. What else is between two zero bytes does no harm.
func parseFunctions(data []byte) functions {
	table := functions{}
	for name := range bytes.SplitSeq(data, []byte{0}) {
		symbol, _, _ := strings.Cut(string(name), "[")
		dot := strings.Index(symbol[strings.LastIndex(symbol, "/")+1:], ".")
		if dot < 0 {
			continue
		}
		table[symbol] = true
		table[symbol[:strings.LastIndex(symbol, "/")+1+dot]+".*"] = true
	}
	return table
}

// has reports whether a function is in the binary.
func (table functions) has(f function) bool {
	if strings.HasSuffix(f.name, "*") {
		f.name = "*"
	}
	for _, symbol := range f.symbols() {
		if table[symbol] {
			return true
		}
	}
	return false
}
