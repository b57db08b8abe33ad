// Command runc-bounded is an OCI runtime for machines whose root lacks some
// capability: it removes from what a container requests the capabilities that its
// own bounding set lacks, and becomes the runc of the search path.
//
// A container engine requests every capability that it knows when it makes a
// privileged container, and runc refuses what it cannot give. A node of a kind
// cluster is a privileged container; it runs well without, for example,
// CAP_SYS_RESOURCE.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
)

func main() {
	fmt.Fprintln(os.Stderr, "runc-bounded:", become(os.Args))
	os.Exit(1)
}

// become returns only when it fails.
func become(args []string) error {
	if path, process := specFile(args[1:]); path != "" {
		bounding, err := boundingSet()
		if err != nil {
			return fmt.Errorf("reading the bounding set: %w", err)
		}
		if err := bound(path, process, bounding); err != nil {
			return err
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", runc, syscall.Exec(runc, append([]string{runc}, args[1:]...), os.Environ()))
}

// boundingSet returns the names of the capabilities that this process may pass on,
// as OCI specifications write them.
func boundingSet() (map[string]bool, error) {
	self, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	if err := self.Load(); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, c := range capability.ListKnown() {
		if self.Get(capability.BOUNDING, c) {
			names["CAP_"+strings.ToUpper(c.String())] = true
		}
	}
	return names, nil
}

// specFile returns the file that says what process the arguments start, and the keys
// that lead to the process in it. The file is "" for commands that start none, and
// for an exec that has its process in its arguments.
func specFile(args []string) (file string, process []string) {
	command, bundle, processFile := "", ".", ""
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			if command == "" && slices.Contains([]string{"create", "run", "restore", "exec"}, args[i]) {
				command = args[i]
			}
			continue
		}
		name, value, assigned := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !assigned && i+1 < len(args) {
			value = args[i+1]
		}
		switch name {
		case "bundle", "b":
			bundle = value
		case "process", "p":
			processFile = value
		}
	}
	switch command {
	case "create", "run", "restore":
		return filepath.Join(bundle, "config.json"), []string{"process"}
	case "exec":
		return processFile, nil
	}
	return "", nil
}

// bound takes the capabilities that are not in the bounding set from the process in
// the file. A file that requests none of them stays as it is; all other content stays
// as it is in every case.
func bound(path string, process []string, bounding map[string]bool) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	bounded, changed, err := rewrite(content, append(process, "capabilities"), func(content []byte) ([]byte, bool, error) {
		return boundSets(content, bounding)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !changed {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bounded, info.Mode().Perm())
}

// rewrite changes the value that the keys lead to in a JSON object. Absent keys mean
// that there is nothing to change.
func rewrite(content []byte, keys []string, change func([]byte) ([]byte, bool, error)) ([]byte, bool, error) {
	if len(keys) == 0 {
		return change(content)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(content, &object); err != nil {
		return nil, false, err
	}
	if len(object[keys[0]]) == 0 {
		return content, false, nil
	}
	value, changed, err := rewrite(object[keys[0]], keys[1:], change)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", keys[0], err)
	}
	if !changed {
		return content, false, nil
	}
	object[keys[0]] = value
	content, err = json.Marshal(object)
	return content, true, err
}

// boundSets takes names from the sets of an OCI capabilities object.
func boundSets(content []byte, bounding map[string]bool) ([]byte, bool, error) {
	var sets map[string][]string
	if err := json.Unmarshal(content, &sets); err != nil {
		return nil, false, err
	}
	changed := false
	for name, set := range sets {
		kept := slices.DeleteFunc(slices.Clone(set), func(c string) bool { return !bounding[c] })
		changed = changed || len(kept) < len(set)
		sets[name] = kept
	}
	if !changed {
		return content, false, nil
	}
	content, err := json.Marshal(sets)
	return content, true, err
}
