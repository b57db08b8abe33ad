package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"kubelet-guard.io/node-e2e/framework/unixsocket"
)

// Pool is the pool in which all devices of a driver are.
const Pool = "pool"

// Driver is a driver of dynamic resource allocation on the node. It prepares every claim,
// without doing anything, and remembers which are prepared.
type Driver struct {
	drapb.UnimplementedDRAPluginServer
	registerapi.UnimplementedRegistrationServer

	name, endpoint string
	servers        []*grpc.Server
	folders        []unixsocket.Folder
	registered     chan struct{}
	once           sync.Once

	mu       sync.Mutex
	prepared map[string]bool
}

// StartDriver serves claims of a driver and returns when the kubelet has found it.
// rootDir is the kubelet's folder as this process sees it, nodeRootDir as the kubelet
// does. Unlike device plugins, drivers stay registered over a restart of the kubelet.
func StartDriver(ctx context.Context, rootDir, nodeRootDir, name string) (*Driver, error) {
	d := &Driver{name: name, registered: make(chan struct{}), prepared: map[string]bool{}}
	d.endpoint = path.Join(nodeRootDir, "plugins", name, "dra.sock")
	services := grpc.NewServer()
	drapb.RegisterDRAPluginServer(services, d)
	err := d.serve(services, filepath.Join(rootDir, "plugins", name, "dra.sock"))
	if err == nil {
		registration := grpc.NewServer()
		registerapi.RegisterRegistrationServer(registration, d)
		err = d.serve(registration, filepath.Join(rootDir, "plugins_registry", name+"-reg.sock"))
	}
	if err == nil {
		select {
		case <-d.registered:
			return d, nil
		case <-ctx.Done():
			err = fmt.Errorf("the kubelet has not registered it: %w", ctx.Err())
		}
	}
	d.Stop()
	return nil, fmt.Errorf("driver %s: %w", name, err)
}

func (d *Driver) serve(server *grpc.Server, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	folder, err := unixsocket.OpenFolder(filepath.Dir(socket))
	if err != nil {
		return err
	}
	d.folders = append(d.folders, folder)
	listener, err := net.Listen("unix", folder.Path(filepath.Base(socket)))
	if err != nil {
		return err
	}
	d.servers = append(d.servers, server)
	go func() { _ = server.Serve(listener) }()
	return nil
}

// Stop ends the driver and removes its sockets.
func (d *Driver) Stop() {
	for _, server := range d.servers {
		server.Stop()
	}
	for _, folder := range d.folders {
		_ = folder.Close()
	}
}

// Prepared reports whether the kubelet has had the claim with the UID prepared, and not
// unprepared since.
func (d *Driver) Prepared(uid string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.prepared[uid]
}

// GetInfo implements registerapi.RegistrationServer.
func (d *Driver) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: d.name, Endpoint: d.endpoint, SupportedVersions: []string{drapb.DRAPluginService}}, nil
}

// NotifyRegistrationStatus implements registerapi.RegistrationServer.
func (d *Driver) NotifyRegistrationStatus(_ context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if status.PluginRegistered {
		d.once.Do(func() { close(d.registered) })
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// NodePrepareResources implements drapb.DRAPluginServer.
func (d *Driver) NodePrepareResources(_ context.Context, request *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	response := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, claim := range request.Claims {
		d.prepared[claim.Uid] = true
		response.Claims[claim.Uid] = &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{{PoolName: Pool, DeviceName: claim.Uid}}}
	}
	return response, nil
}

// NodeUnprepareResources implements drapb.DRAPluginServer.
func (d *Driver) NodeUnprepareResources(_ context.Context, request *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	response := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, claim := range request.Claims {
		delete(d.prepared, claim.Uid)
		response.Claims[claim.Uid] = &drapb.NodeUnprepareResourceResponse{}
	}
	return response, nil
}
