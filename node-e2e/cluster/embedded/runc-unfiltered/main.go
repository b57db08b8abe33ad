// Command runc-unfiltered is the OCI runtime of an embedded node: it removes the
// seccomp section from a bundle that is about to be created, and becomes the
// runc in the same folder.
//
// The kubelet wants the default seccomp profile for every sandbox. A runc that
// can apply one needs a C library that the machines here do not have, and a runc
// that cannot refuses the bundle. System call filters have no part in what the
// suite proves.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	fmt.Fprintln(os.Stderr, "runc-unfiltered:", become(os.Args))
	os.Exit(1)
}

// become returns only when it fails.
func become(args []string) error {
	if bundle, creates := bundleToCreate(args[1:]); creates {
		if err := removeSeccomp(filepath.Join(bundle, "config.json")); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runc := filepath.Join(filepath.Dir(self), "runc")
	return fmt.Errorf("%s: %w", runc, syscall.Exec(runc, append([]string{runc}, args[1:]...), os.Environ()))
}

// bundleToCreate returns the bundle's folder if the arguments create or run a
// container.
func bundleToCreate(args []string) (string, bool) {
	bundle, creates := ".", false
	for i, arg := range args {
		name, value, assigned := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		isFlag := strings.HasPrefix(arg, "-")
		switch {
		case !isFlag && (arg == "create" || arg == "run"):
			creates = true
		case isFlag && (name == "bundle" || name == "b") && assigned:
			bundle = value
		case isFlag && (name == "bundle" || name == "b") && i+1 < len(args):
			bundle = args[i+1]
		}
	}
	return bundle, creates
}

// removeSeccomp rewrites the file unless it has no seccomp section. All other
// content stays as it is.
func removeSeccomp(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec, linux map[string]json.RawMessage
	if err := json.Unmarshal(content, &spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(spec["linux"]) == 0 {
		return nil
	}
	if err := json.Unmarshal(spec["linux"], &linux); err != nil {
		return fmt.Errorf("%s: linux: %w", path, err)
	}
	if _, present := linux["seccomp"]; !present {
		return nil
	}
	delete(linux, "seccomp")
	if spec["linux"], err = json.Marshal(linux); err != nil {
		return err
	}
	if content, err = json.Marshal(spec); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, info.Mode().Perm())
}
