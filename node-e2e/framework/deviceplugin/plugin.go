// Package deviceplugin has a device plugin (Plugin) and a driver of resource claims
// (Driver) for the node suite. Their devices are names: a container finds those of the
// plugin in its environment, and nothing else comes with them.
//
// Both speak the kubelet's own interfaces (deviceplugin/v1beta1 and dra/v1 in
// k8s.io/kubelet/pkg/apis) over the sockets that real ones use.
package deviceplugin

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"kubelet-guard.io/node-e2e/framework/unixsocket"
)

// Env is the environment variable with a container's devices: sorted, joined by commas.
const Env = "E2E_DEVICES"

// socket is the plugin's own socket, in the folder of the kubelet's.
const socket = "e2e.sock"

// Plugin is one registered plugin. The kubelet knows of its devices until some time after
// Stop: a plugin that is away a moment keeps them.
type Plugin struct {
	pluginapi.UnimplementedDevicePluginServer

	devices []*pluginapi.Device
	server  *grpc.Server
	stopped chan struct{}
	// folder is open as long as the server's socket is removed by its name in it.
	folder unixsocket.Folder
}

// Start serves healthy devices of the resource and registers them with the kubelet whose
// folder "device-plugins" is given, as this process sees it. A kubelet that starts forgets
// its plugins and removes their sockets: Stop the plugin and start one again then.
func Start(ctx context.Context, folder, resource string, devices ...string) (*Plugin, error) {
	p := &Plugin{server: grpc.NewServer(), stopped: make(chan struct{})}
	for _, name := range devices {
		p.devices = append(p.devices, &pluginapi.Device{ID: name, Health: pluginapi.Healthy})
	}
	var err error
	if p.folder, err = unixsocket.OpenFolder(folder); err != nil {
		return nil, fmt.Errorf("folder of the device plugins: %w", err)
	}
	listener, err := net.Listen("unix", p.folder.Path(socket))
	if err != nil {
		_ = p.folder.Close()
		return nil, fmt.Errorf("socket of the device plugin: %w", err)
	}
	pluginapi.RegisterDevicePluginServer(p.server, p)
	go func() { _ = p.server.Serve(listener) }()
	if err := p.register(ctx, resource); err != nil {
		p.Stop()
		return nil, fmt.Errorf("register the device plugin of %s with the kubelet: %w", resource, err)
	}
	return p, nil
}

// Stop ends the plugin. It does not notify the kubelet, which finds its connection closed.
func (p *Plugin) Stop() {
	close(p.stopped)
	p.server.Stop()
	_ = p.folder.Close()
}

func (p *Plugin) register(ctx context.Context, resource string) error {
	kubelet, err := unixsocket.Client(p.folder.Path(filepath.Base(pluginapi.KubeletSocket)))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	_, err = pluginapi.NewRegistrationClient(kubelet).Register(ctx, &pluginapi.RegisterRequest{
		Version:      pluginapi.Version,
		Endpoint:     socket,
		ResourceName: resource,
		Options:      &pluginapi.DevicePluginOptions{},
	}, grpc.WaitForReady(true))
	return err
}

// GetDevicePluginOptions implements pluginapi.DevicePluginServer: none.
func (p *Plugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &pluginapi.DevicePluginOptions{}, nil
}

// ListAndWatch implements pluginapi.DevicePluginServer: the devices never change.
func (p *Plugin) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	select {
	case <-p.stopped:
	case <-stream.Context().Done():
	}
	return nil
}

// Allocate implements pluginapi.DevicePluginServer.
func (p *Plugin) Allocate(_ context.Context, request *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	response := &pluginapi.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		names := slices.Sorted(slices.Values(container.DevicesIds))
		response.ContainerResponses = append(response.ContainerResponses, &pluginapi.ContainerAllocateResponse{
			Envs: map[string]string{Env: strings.Join(names, ",")},
		})
	}
	return response, nil
}
