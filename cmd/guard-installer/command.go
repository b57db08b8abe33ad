package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelettrial"
	"kubelet-guard.io/cmd/guard-installer/internal/node"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/pkg/rollout"
	"kubelet-guard.io/pkg/version"
)

const (
	// readyFile is there while the pod is ready. It belongs to the container: one that
	// was started again is not ready.
	readyFile = "/ready"
	tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	// versionTimeout bounds a program that is run with --version.
	versionTimeout = 20 * time.Second
)

func newCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   rollout.Name,
		Short: "Bring a node to the kubelet that a roll-out requests, and back",
		Long: `Bring a node to the kubelet that a roll-out requests, and back.

Nobody needs to call it: a DaemonSet that kubectl guard rollout makes runs it on the
nodes of a pool, and systemd on a node whose change has to be rolled back.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		Version:       version.String(),
	}
	command.CompletionOptions.DisableDefaultCmd = true
	logging := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(logging)
	command.PersistentFlags().AddGoFlag(logging.Lookup("v"))

	command.AddCommand(
		&cobra.Command{
			Use: "run", Short: "Bring the node to what the pod's annotation requests (in the pod)", Args: cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error { return run(command.Context()) },
		},
		&cobra.Command{
			Use: "ready", Short: "Succeed when the roll-out may go on (the readiness probe)", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				if _, err := os.Stat(readyFile); err != nil {
					return errors.New("the node does not run what was requested; see the log, or kubectl guard rollout status")
				}
				return nil
			},
		},
		&cobra.Command{
			Use: "rollback", Short: "Restore the previous kubelet unless the change was confirmed, or the new one holds pods (on the node)", Args: cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error {
				entry, err := store("/").RollBackOrTry(command.Context(), systemd.Manager{Root: "/"}, keep, rollout.ReasonInterrupted,
					"the installer did not confirm the change in time, so the node rolled it back by itself")
				return logOutcome(entry, err)
			},
		},
		&cobra.Command{
			Use: "recover", Short: "Restore the previous kubelet when the node has booted in the middle of a change (on the node)", Args: cobra.NoArgs,
			RunE: func(command *cobra.Command, _ []string) error {
				return logOutcome(store("/").Recover(command.Context(), systemd.Manager{Root: "/"}, keep))
			},
		},
	)
	return command
}

// keep is called on the node, with the token of the installer that started the change.
func keep(ctx context.Context, entry *journal.Entry) string {
	return node.Holding{
		Root: "/", Systemd: systemd.Manager{Root: "/"}, Protected: query("/", entry.TokenFile, (*kubelet.Client).Protected), Poll: time.Second,
	}.KeepReason(ctx, entry)
}

// query queries the process that kubelet.service runs, and nobody else.
func query[T any](root host.Root, token string, call func(*kubelet.Client, context.Context) (T, error)) func(ctx context.Context, address, pin string) (T, error) {
	return func(ctx context.Context, address, pin string) (response T, err error) {
		unit, err := systemd.Manager{Root: root}.Unit(ctx, rollout.KubeletUnit)
		if err != nil {
			return response, err
		}
		return call(&kubelet.Client{Address: address, TokenFile: token, Pin: pin, Identity: &kubelet.Identity{Root: root, PID: unit.MainPID}}, ctx)
	}
}

func store(root host.Root) journal.Store { return journal.Store{Root: root} }

// logOutcome logs what became of a change; the log is systemd's journal.
func logOutcome(entry *journal.Entry, err error) error {
	if err != nil {
		return fmt.Errorf("%w (systemd tries it again after %d seconds, %d times in all)", err, node.RollbackPause, node.RollbackTries)
	}
	if entry == nil {
		klog.InfoS("There is no change to roll back")
		return nil
	}
	klog.InfoS("The change of the kubelet", "state", entry.State, "request", entry.RequestID, "reason", entry.Reason, "message", entry.Message)
	return nil
}

func run(ctx context.Context) error {
	// What was ready before a restart of this process is inspected again.
	if err := setReady(false); err != nil {
		return err
	}
	request, err := rollout.ParseRequest(os.Getenv(rollout.RequestEnv))
	if err != nil {
		return fmt.Errorf("%s: %w", rollout.RequestEnv, err)
	}
	pool, err := rollout.ParsePool(os.Getenv(rollout.PoolEnv))
	if err != nil {
		return fmt.Errorf("%s: %w", rollout.PoolEnv, err)
	}
	name := os.Getenv(rollout.NodeEnv)
	if name == "" {
		return fmt.Errorf("%s is empty: it must be the name of the node", rollout.NodeEnv)
	}
	root := host.Root(rollout.HostRoot)
	if !root.Exists("/proc/1") {
		return fmt.Errorf("%s is not the root of a node: the pod needs its hostPath volume", rollout.HostRoot)
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("no access to the cluster: %w", err)
	}
	config.UserAgent = rollout.Name
	// It has few questions. A fault that makes it ask in a loop must not be one of all nodes.
	config.QPS, config.Burst = 5, 30
	config.Timeout = 10 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	klog.InfoS("Started", "node", name, "pool", pool.Name, "target", request.Target, "request", request.ID(), "image", request.Image)
	installer := &node.Installer{
		Root:    root,
		Systemd: systemd.Manager{Root: root},
		Cluster: &cluster.Cluster{Client: client, Pool: pool, NodeName: name},
		Request: request,
		Pool:    pool,
		Owner:   fmt.Sprintf("pod %s of pool %s", os.Getenv(rollout.PodEnv), pool.Name),
		Program: rollout.InstallerPath,
		Kubelet: rollout.KubeletPath,
		Ask: func(ctx context.Context, address, pin string) (answer kubelet.Answer, shown string, err error) {
			shown, err = query(root, tokenFile, func(c *kubelet.Client, ctx context.Context) (string, error) {
				answer, err = c.Ask(ctx)
				return c.Pin, err
			})(ctx, address, pin)
			return answer, shown, err
		},
		Protected: query(root, tokenFile, (*kubelet.Client).Protected),
		Pods:      query(root, tokenFile, (*kubelet.Client).Pods),
		Config:    query(root, tokenFile, (*kubelet.Client).Config),
		TokenFile: tokenFile,
		Running: func(ctx context.Context, socket string) ([]cri.Container, error) {
			return cri.Runtime{Root: root, Endpoint: socket}.Running(ctx)
		},
		Version:  programVersion,
		Accepts:  kubelettrial.Accepts,
		SetReady: setReady,
		Poll:     time.Second,
		Recovery: 45 * time.Second,
	}
	return installer.Run(ctx)
}

func setReady(ready bool) error {
	if !ready {
		if err := os.Remove(readyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(readyFile, nil, 0o600)
}

// programVersion runs a kubelet with --version, on the node when a root is given.
func programVersion(ctx context.Context, root host.Root, program string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, program, "--version")
	command.Dir = "/"
	command.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if root != "" {
		command.SysProcAttr = &syscall.SysProcAttr{Chroot: string(root)}
	}
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %.200s", program, err, strings.TrimSpace(string(out)))
	}
	version, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "Kubernetes ")
	if !ok {
		return "", fmt.Errorf("%s --version says %.100q; Kubernetes v1.… was expected", program, out)
	}
	return version, nil
}
