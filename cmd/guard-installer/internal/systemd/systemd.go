// Package systemd speaks to the systemd of the node over its private socket, which
// needs no message bus and works from a container that sees the node's /run.
package systemd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

const (
	socket = "/run/systemd/private"
	// callTimeout bounds one question to systemd. A reload of a node with many units
	// takes seconds.
	callTimeout = 20 * time.Second
	// stopPatience is how long a service may take to stop before it is killed. A kubelet
	// that is killed loses nothing: it keeps no state that it does not sync.
	stopPatience = 10 * time.Second
	// jobTimeout bounds the start of a service.
	jobTimeout = 60 * time.Second
)

// Unit is the state of a service.
type Unit struct {
	// Loaded: systemd knows the unit file.
	Loaded bool
	// Active and Sub are as systemctl shows them, such as active and running.
	Active, Sub string
	// Files are the unit file and its drop-ins in the order in which they count.
	Files []string
	// MainPID is 0 when no process runs.
	MainPID int
	// Restarts is how often systemd has started the service again by itself since
	// it was started by a job.
	Restarts uint32
	// NeedsReload: a file has changed since systemd read it.
	NeedsReload bool
	// StoppedWith are the units that systemd stops whenever it stops this one.
	StoppedWith []string
	// ControlGroup has the processes of the unit, as /system.slice/kubelet.service; empty
	// when none runs.
	ControlGroup string
}

// Running reports whether the process of the service runs.
func (u Unit) Running() bool { return u.Active == "active" && u.MainPID > 0 }

// Manager is the systemd of a node. It opens a connection for each call: a reload may
// close the ones there are.
type Manager struct{ Root host.Root }

func (m Manager) do(ctx context.Context, what string, timeout time.Duration, call func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	path := m.Root.Path(socket)
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) {
		c, err := godbus.Dial("unix:path="+path, godbus.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		if err := c.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, nil
	})
	if err != nil {
		return fmt.Errorf("systemd: %s: connect to %s: %w", what, socket, err)
	}
	defer conn.Close()
	if err := call(ctx, conn); err != nil {
		return fmt.Errorf("systemd: %s: %w", what, err)
	}
	return nil
}

// Reload has systemd read all unit files again.
func (m Manager) Reload(ctx context.Context) error {
	return m.do(ctx, "daemon-reload", callTimeout, func(ctx context.Context, c *dbus.Conn) error { return c.ReloadContext(ctx) })
}

// Unit returns the state of a service. One that does not exist is not Loaded.
func (m Manager) Unit(ctx context.Context, name string) (Unit, error) {
	var unit Unit
	err := m.do(ctx, "state of "+name, callTimeout, func(ctx context.Context, c *dbus.Conn) error {
		properties, err := c.GetAllPropertiesContext(ctx, name)
		if err != nil {
			return err
		}
		unit.Loaded = properties["LoadState"] == "loaded"
		unit.Active, _ = properties["ActiveState"].(string)
		unit.Sub, _ = properties["SubState"].(string)
		unit.NeedsReload, _ = properties["NeedDaemonReload"].(bool)
		unit.Restarts, _ = properties["NRestarts"].(uint32)
		if pid, ok := properties["MainPID"].(uint32); ok {
			unit.MainPID = int(pid)
		}
		// Units with PartOf=, BindsTo= and Requires= of this one, and its own PropagatesStopTo=.
		for _, key := range []string{"ConsistsOf", "BoundBy", "RequiredBy", "PropagatesStopTo"} {
			names, _ := properties[key].([]string)
			unit.StoppedWith = append(unit.StoppedWith, names...)
		}
		unit.ControlGroup, _ = properties["ControlGroup"].(string)
		if fragment, _ := properties["FragmentPath"].(string); fragment != "" {
			unit.Files = append(unit.Files, fragment)
		}
		dropIns, _ := properties["DropInPaths"].([]string)
		unit.Files = append(unit.Files, dropIns...)
		return nil
	})
	return unit, err
}

// Restart restarts a service and returns when its process was started. One that does
// not stop in 10 seconds is killed.
func (m Manager) Restart(ctx context.Context, name string) error {
	return m.do(ctx, "restart "+name, stopPatience+jobTimeout, func(ctx context.Context, c *dbus.Conn) error {
		// A service that failed too often would not be started.
		_ = c.ResetFailedUnitContext(ctx, name)
		results := make(chan string, 1)
		if _, err := c.RestartUnitContext(ctx, name, "replace", results); err != nil {
			return err
		}
		patience := time.NewTimer(stopPatience)
		defer patience.Stop()
		for {
			select {
			case result := <-results:
				return jobError(result)
			case <-patience.C:
				state, err := c.GetUnitPropertyContext(ctx, name, "ActiveState")
				if err == nil && state.Value.Value() == "deactivating" {
					// The job goes on or fails; its result says so.
					_ = c.KillUnitWithTarget(ctx, name, dbus.Main, int32(syscall.SIGKILL))
				}
			case <-ctx.Done():
				return fmt.Errorf("it was not started in time: %w", ctx.Err())
			}
		}
	})
}

// Queue asks for a restart and does not wait for it.
func (m Manager) Queue(ctx context.Context, name string) error {
	return m.do(ctx, "restart "+name, callTimeout, func(ctx context.Context, c *dbus.Conn) error {
		_, err := c.RestartUnitContext(ctx, name, "replace", nil)
		return err
	})
}

// Start starts a unit and waits until it has started; for a service of type oneshot,
// until it has ended well.
func (m Manager) Start(ctx context.Context, name string) error {
	return m.do(ctx, "start "+name, 2*jobTimeout, func(ctx context.Context, c *dbus.Conn) error {
		result, err := job(ctx, name, c.StartUnitContext)
		return cmp.Or(err, jobError(result))
	})
}

// Stop stops a unit. One that does not exist is stopped.
func (m Manager) Stop(ctx context.Context, name string) error {
	err := m.do(ctx, "stop "+name, jobTimeout, func(ctx context.Context, c *dbus.Conn) error {
		_, err := job(ctx, name, c.StopUnitContext)
		return err
	})
	var missing godbus.Error
	if errors.As(err, &missing) && missing.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	return err
}

// job starts a job and waits for its result.
func job(ctx context.Context, name string, start func(context.Context, string, string, chan<- string) (int, error)) (string, error) {
	results := make(chan string, 1)
	if _, err := start(ctx, name, "replace", results); err != nil {
		return "", err
	}
	select {
	case result := <-results:
		return result, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func jobError(result string) error {
	if result == "done" {
		return nil
	}
	return fmt.Errorf("the result of the job is %q; see journalctl on the node", result)
}
