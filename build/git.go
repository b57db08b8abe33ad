package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Commits that the tools make carry a fixed identity and time: the same series gives the
// same commit hashes for everybody.
const (
	toolName  = "Kubelet Guard"
	toolEmail = "noreply@kubelet-guard.io"
	toolDate  = "2026-01-01T00:00:00Z"
	// mailDate is toolDate as a mail header has it.
	mailDate = "Thu, 1 Jan 2026 00:00:00 +0000"
)

// command returns a command that is stopped by an interrupt instead of being
// killed, so that git and go can remove their lock and temporary files.
func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 15 * time.Second
	return cmd
}

// git runs git in one folder, apart from the user's configuration: a diff.noprefix, a
// signing key or a hook there would change what is exported.
type git struct {
	dir string
	// env is added to the environment.
	env []string
}

// run executes git and returns its standard output without the last newline. The error of
// a failed command has what git wrote.
func (g git) run(ctx context.Context, args ...string) (string, error) {
	out, err := g.raw(ctx, nil, args...)
	return strings.TrimRight(string(out), "\n"), err
}

// lines is run with the lines of the output.
func (g git) lines(ctx context.Context, args ...string) ([]string, error) {
	out, err := g.run(ctx, args...)
	if out == "" {
		return nil, err
	}
	return strings.Split(out, "\n"), err
}

// all runs commands one after the other, up to the first that fails.
func (g git) all(ctx context.Context, commands ...[]string) error {
	for _, args := range commands {
		if _, err := g.run(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// raw is run with a standard input and with the output's exact bytes.
func (g git) raw(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := command(ctx, g.dir, "git", append([]string{
		"-c", "core.hooksPath=/dev/null",
		"-c", "core.autocrlf=false",
		"-c", "core.fileMode=true",
		"-c", "core.quotePath=false",
		"-c", "commit.gpgSign=false",
		"-c", "rebase.autoSquash=false",
		"-c", "gc.auto=0",
		"-c", "advice.detachedHead=false",
		"-c", "diff.algorithm=myers",
	}, args...)...)
	for _, kv := range os.Environ() {
		// What a surrounding git sets, in a hook or a rebase --exec, would point the commands
		// at another repository.
		if !strings.HasPrefix(kv, "GIT_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(append(cmd.Env,
		"GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME="+toolName, "GIT_AUTHOR_EMAIL="+toolEmail, "GIT_AUTHOR_DATE="+toolDate,
		"GIT_COMMITTER_NAME="+toolName, "GIT_COMMITTER_EMAIL="+toolEmail, "GIT_COMMITTER_DATE="+toolDate,
		"GIT_TERMINAL_PROMPT=0", "GIT_EDITOR=true", "LC_ALL=C", "TZ=UTC",
	), g.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		detail := strings.TrimSpace(stderr.String() + "\n" + stdout.String())
		return stdout.Bytes(), fmt.Errorf("git %s in %s: %w\n%.4000s", args[0], g.dir, err, detail)
	}
	return stdout.Bytes(), nil
}
