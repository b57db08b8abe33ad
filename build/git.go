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

// Commits that the tools make themselves carry a fixed identity and time: the
// same series gives the same commit hashes for everybody.
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

// gitTree runs git in one work tree, apart from the user's configuration: a
// diff.noprefix, a signing key or a hook there would change what is exported.
type gitTree struct {
	dir string
}

func (g gitTree) cmd(ctx context.Context, args ...string) *exec.Cmd {
	cmd := command(ctx, g.dir, "git", append([]string{
		"-c", "core.hooksPath=/dev/null",
		"-c", "core.autocrlf=false",
		"-c", "core.fileMode=true",
		"-c", "gc.auto=0",
		"-c", "advice.detachedHead=false",
		"-c", "diff.algorithm=myers",
	}, args...)...)
	cmd.Env = append(cleanGitEnv(os.Environ()),
		"GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME="+toolName, "GIT_AUTHOR_EMAIL="+toolEmail, "GIT_AUTHOR_DATE="+toolDate,
		"GIT_COMMITTER_NAME="+toolName, "GIT_COMMITTER_EMAIL="+toolEmail, "GIT_COMMITTER_DATE="+toolDate,
		"GIT_TERMINAL_PROMPT=0", "GIT_EDITOR=true", "LC_ALL=C", "TZ=UTC",
	)
	return cmd
}

// cleanGitEnv drops what a surrounding git (a hook, a rebase --exec) sets: it
// would point the commands at another repository.
func cleanGitEnv(env []string) []string {
	out := env[:0:0]
	for _, kv := range env {
		if !strings.HasPrefix(kv, "GIT_") {
			out = append(out, kv)
		}
	}
	return out
}

// run executes git and returns its standard output without the last newline.
// A failure carries what git wrote to its standard error.
func (g gitTree) run(ctx context.Context, args ...string) (string, error) {
	out, err := g.raw(ctx, nil, args...)
	return strings.TrimRight(string(out), "\n"), err
}

// raw is run with a standard input and with the output's exact bytes.
func (g gitTree) raw(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := g.cmd(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil {
		detail := strings.TrimSpace(stderr.String() + "\n" + stdout.String())
		if len(detail) > 4000 {
			detail = detail[:4000] + " …"
		}
		return stdout.Bytes(), fmt.Errorf("git %s in %s: %w\n%s", args[0], g.dir, err, detail)
	}
	return stdout.Bytes(), nil
}
