// Package kubelettrial tries the kubelet of an image on the configuration of a node, without
// starting it. What it writes is in the file system of the installer, not of the node.
package kubelettrial

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

const (
	// acceptTimeout ends a kubelet that reads its configuration, which takes far below a second.
	acceptTimeout = 10 * time.Second
	// planted is a flag that every kubelet refuses, after it has read and before it does
	// anything; plantedError is how it says so.
	planted      = "--max-pods=-1"
	plantedError = "invalid configuration: maxPods (--max-pods) -1 must not be a negative number"
)

// Accepts returns why a kubelet would not start with the flags and the configuration of a
// process of the node's kubelet: a feature gate, a flag or a field that its version does not
// have, or a value that it refuses. "" when it would. The program is run here, not on the
// node, with a value that it must refuse in the end; in addition it has no runtime, no
// cluster and no folder of a kubelet. An error means that nothing is known.
//
// It relies on the sequence in NewKubeletCommand of cmd/kubelet/app/server.go: flags,
// configuration, feature gates, validation, and only then anything else.
func Accepts(ctx context.Context, root host.Root, program string, process host.Process) (why string, err error) {
	if err := os.MkdirAll(os.TempDir(), 0o1777); err != nil { // an image has no such folder
		return "", err
	}
	dir, err := os.MkdirTemp("", "kubelet-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	arguments, err := acceptArguments(root, process, dir)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, program, arguments...)
	command.Dir, command.Env = dir, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := command.CombinedOutput()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s was still reading its configuration after %v: %w", program, acceptTimeout, ctx.Err())
	}
	if err == nil {
		return "", fmt.Errorf("%s ended without an error with %s", program, planted)
	}
	return refusal(string(out))
}

// acceptArguments returns the arguments of the process with its files copied to a folder, and
// with what keeps the kubelet from working.
func acceptArguments(root host.Root, process host.Process, dir string) ([]string, error) {
	var arguments []string
	for n := 1; n < len(process.Arguments); n++ {
		if argument := process.Arguments[n]; argument == "--guard-config" {
			n++
		} else if !strings.HasPrefix(argument, "--guard-config=") {
			arguments = append(arguments, argument)
		}
	}
	if name, _ := process.Flag("--config"); name != "" {
		if err := copyConfig(root, name, filepath.Join(dir, "config.yaml")); err != nil {
			return nil, err
		}
		arguments = append(arguments, "--config="+filepath.Join(dir, "config.yaml"))
	}
	if name, _ := process.Flag("--config-dir"); name != "" {
		to, from := filepath.Join(dir, "config.d"), root.Path(name)
		if err := filepath.WalkDir(from, func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			inside, _ := filepath.Rel(from, file)
			if entry.IsDir() {
				return os.Mkdir(filepath.Join(to, inside), 0o700)
			}
			return copyConfig(root, filepath.Join(name, inside), filepath.Join(to, inside))
		}); err != nil {
			return nil, fmt.Errorf("the drop-ins of the kubelet's configuration in %s: %w", name, err)
		}
		arguments = append(arguments, "--config-dir="+to)
	}
	// The last flag of a name counts.
	return append(arguments, "--kubeconfig=", "--bootstrap-kubeconfig=", "--root-dir="+filepath.Join(dir, "root"), "--cert-dir="+filepath.Join(dir, "pki"),
		"--container-runtime-endpoint=unix://"+filepath.Join(dir, "no.sock"), "--logging-format=text", planted), nil
}

func copyConfig(root host.Root, from, to string) error {
	data, err := root.Read(from)
	if err != nil {
		return fmt.Errorf("the configuration of the kubelet: %w", err)
	}
	return os.WriteFile(to, data, 0o600)
}

var (
	// lastError finds the error with which component-base's cli.Run ends a program.
	lastError = regexp.MustCompile(`"command failed" err=("(?:[^"\\]|\\.)*")`)
	// panics finds how the defaults of a configuration end one whose gates it does not know.
	panics = regexp.MustCompile(`(?m)^panic: (.+)$`)
)

// refusal returns what a kubelet that ended with an error refuses besides what was planted.
func refusal(out string) (string, error) {
	if found := panics.FindStringSubmatch(out); found != nil {
		return found[1], nil
	}
	found := lastError.FindStringSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("the kubelet ended, and said nothing of its configuration: %.300s", strings.TrimSpace(out))
	}
	text, err := strconv.Unquote(found[1])
	if err != nil {
		return "", err
	}
	rest, validated := strings.CutPrefix(text, "failed to validate kubelet configuration, error: ")
	switch {
	case strings.HasPrefix(text, "failed to run Kubelet"):
		return "", errors.New("the kubelet accepted " + planted + ": " + text)
	case !validated:
		return text, nil
	case !strings.Contains(rest, plantedError):
		return "", errors.New("the kubelet did not refuse " + planted + ": " + text)
	}
	if end := strings.LastIndex(rest, ", path: "); end >= 0 {
		rest = rest[:end]
	}
	rest = strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]")
	before, after, _ := strings.Cut(rest, plantedError)
	return strings.Trim(strings.TrimSuffix(before, ", ")+", "+strings.TrimPrefix(after, ", "), ", "), nil
}
