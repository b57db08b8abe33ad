package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// agentPoll is the time between two looks for what the guest has written.
const agentPoll = 200 * time.Millisecond

// Guest is a machine that runs scripts which are given from outside: the test itself runs
// outside, where nothing is emulated.
type Guest struct {
	dir    string // of the agent, outside
	last   atomic.Int64
	ended  chan struct{}
	result error
	boot   string
}

// Boot starts the machine and returns when it takes scripts. The machine ends with the
// context, or by Stop. Config.Command is not used.
func Boot(ctx context.Context, c Config) (*Guest, error) {
	agent, err := guest.ReadFile("guest/agent.sh")
	if err != nil {
		return nil, err
	}
	c.Command = []string{"/bin/bash", "/results/agent/agent", "/results/agent"}
	c.share = map[string][]byte{"agent/agent": agent}
	g := &Guest{dir: filepath.Join(c.Results(), "agent"), ended: make(chan struct{})}
	// Otherwise the agent of an earlier machine would seem to be this one's.
	if err := os.RemoveAll(g.dir); err != nil {
		return nil, err
	}
	go func() {
		defer close(g.ended)
		code, err := Run(ctx, c)
		if err == nil && code != 0 {
			err = fmt.Errorf("the agent in the machine ended with exit code %d", code)
		}
		g.result = err
	}()
	return g, g.awaitBoot(ctx)
}

// awaitBoot waits until the agent runs in another boot than the one that is known.
func (g *Guest) awaitBoot(ctx context.Context) error {
	return g.await(ctx, func() (bool, error) {
		boot, err := g.read("boot")
		if err != nil || boot == "" || boot == g.boot {
			return false, err
		}
		g.boot = boot
		return true, nil
	})
}

// Share is the folder that the guest has at /results.
func (g *Guest) Share() string { return filepath.Dir(g.dir) }

// Exec runs a script of bash as root and returns what it printed, on both streams. An exit
// code other than 0 is an error.
func (g *Guest) Exec(ctx context.Context, script string) (string, error) {
	name := fmt.Sprint(g.last.Add(1))
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path+".new", []byte(script+"\n"), 0o644); err != nil {
		return "", err
	}
	if err := os.Rename(path+".new", path+".sh"); err != nil {
		return "", err
	}
	code := ""
	err := g.await(ctx, func() (done bool, err error) {
		code, err = g.read(name + ".code")
		return code != "", err
	})
	if err != nil {
		return "", fmt.Errorf("running %q in the guest: %w", script, err)
	}
	output, err := os.ReadFile(path + ".out")
	if err == nil && code != "0" {
		err = fmt.Errorf("running %q in the guest: exit code %s: %s", script, code, output)
	}
	return string(output), err
}

// Reset resets the machine, as after a power failure, and returns when it takes scripts
// again. Nothing is stopped and nothing is synced.
func (g *Guest) Reset(ctx context.Context) error {
	if err := os.WriteFile(filepath.Join(g.Share(), "reset"), nil, 0o644); err != nil {
		return err
	}
	if err := g.end(); err != nil {
		return err
	}
	return g.awaitBoot(ctx)
}

// Stop ends the machine, and is an error if it has failed.
func (g *Guest) Stop(ctx context.Context) error {
	if err := g.end(); err != nil {
		return err
	}
	select {
	case <-g.ended:
		return g.result
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *Guest) end() error { return os.WriteFile(filepath.Join(g.dir, "end"), nil, 0o644) }

// read returns a file of the agent, empty when there is none.
func (g *Guest) read(name string) (string, error) {
	content, err := os.ReadFile(filepath.Join(g.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return strings.TrimSpace(string(content)), err
}

func (g *Guest) await(ctx context.Context, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-g.ended:
			return fmt.Errorf("the machine has ended: %w", g.result)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(agentPoll):
		}
	}
}
