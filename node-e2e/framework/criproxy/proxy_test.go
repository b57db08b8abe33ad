package criproxy

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime has one pod from before the proxy, and gives names to what is made.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
}

func (fakeRuntime) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("answered-by", "fake"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("ended-by", "fake"))
	return &runtimeapi.VersionResponse{RuntimeName: "fake " + strings.Join(md.Get("asked-by"), "")}, nil
}

func (fakeRuntime) RunPodSandbox(_ context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: "s-" + r.GetConfig().GetMetadata().GetUid()}, nil
}

func (fakeRuntime) CreateContainer(_ context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return &runtimeapi.CreateContainerResponse{ContainerId: "c-" + strings.TrimPrefix(r.GetPodSandboxId(), "s-")}, nil
}

func (fakeRuntime) StopContainer(_ context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if r.GetContainerId() == "unknown" {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (fakeRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "s-old", Labels: map[string]string{podUIDLabel: "old"}}}}, nil
}

func (fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{{Id: "c-old", PodSandboxId: "s-old", Labels: map[string]string{podUIDLabel: "old"}}}}, nil
}

func (fakeRuntime) ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return &runtimeapi.ContainerStatusResponse{}, nil
}

func (fakeRuntime) ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return &runtimeapi.ExecSyncResponse{Stdout: make([]byte, 12<<20)}, nil
}

func (fakeRuntime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	for _, id := range []string{"a", "b", "c"} {
		if err := stream.Send(&runtimeapi.ContainerEventResponse{ContainerId: id}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

func (fakeRuntime) ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return &runtimeapi.ImageStatusResponse{}, nil
}

// future is a service that this version of the CRI does not have.
var future = grpc.ServiceDesc{
	ServiceName: "runtime.v9.RuntimeService",
	Methods: []grpc.MethodDesc{{MethodName: "Levitate", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var request runtimeapi.VersionRequest
		if err := decode(&request); err != nil {
			return nil, err
		}
		return &runtimeapi.VersionResponse{Version: request.GetVersion() + " risen"}, nil
	}}},
}

// newProxy returns a proxy before a fake runtime, and clients of both services.
func newProxy(t *testing.T) (*Proxy, runtimeapi.RuntimeServiceClient, runtimeapi.ImageServiceClient, *grpc.ClientConn) {
	t.Helper()
	// A folder so deep that the runtime's socket cannot be dialled by its path.
	dir := t.TempDir()
	deep := filepath.Join(dir, strings.Repeat("d", 100))
	require.NoError(t, os.Mkdir(deep, 0o755))
	listener, err := net.Listen("unix", filepath.Join(dir, "short.sock"))
	require.NoError(t, err)
	require.NoError(t, os.Rename(filepath.Join(dir, "short.sock"), filepath.Join(deep, "runtime.sock")))
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, fakeRuntime{})
	runtimeapi.RegisterImageServiceServer(server, fakeRuntime{})
	server.RegisterService(&future, nil)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	p, err := Start(t.Context(), filepath.Join(dir, "proxy.sock"), filepath.Join(deep, "runtime.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	connection, err := grpc.NewClient(p.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, connection.Close()) })
	return p, runtimeapi.NewRuntimeServiceClient(connection), runtimeapi.NewImageServiceClient(connection), connection
}

func TestPassesOnUnchanged(t *testing.T) {
	p, client, _, connection := newProxy(t)
	ctx := t.Context()

	var header, trailer metadata.MD
	answer, err := client.Version(metadata.AppendToOutgoingContext(ctx, "asked-by", "kubelet"), &runtimeapi.VersionRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
	require.NoError(t, err)
	assert.Equal(t, "fake kubelet", answer.GetRuntimeName(), "the caller's metadata")
	assert.Equal(t, []string{"fake"}, header.Get("answered-by"), "header")
	assert.Equal(t, []string{"fake"}, trailer.Get("ended-by"), "trailer")

	_, err = client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "unknown"})
	assert.Equal(t, codes.NotFound, status.Code(err), "the runtime's error")
	assert.ErrorContains(t, err, "no such container")
	_, err = client.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{})
	assert.Equal(t, codes.Unimplemented, status.Code(err), "a method that the runtime does not have")

	large, err := client.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "c-old"})
	require.NoError(t, err, "12 MiB")
	assert.Len(t, large.GetStdout(), 12<<20)

	var risen runtimeapi.VersionResponse
	require.NoError(t, connection.Invoke(ctx, "/runtime.v9.RuntimeService/Levitate", &runtimeapi.VersionRequest{Version: "v9"}, &risen))
	assert.Equal(t, "v9 risen", risen.GetVersion(), "a method that the proxy does not know")

	var methods []string
	for _, call := range p.Calls() {
		methods = append(methods, call.Service+" "+call.Method+" "+call.Code.String())
		assert.False(t, call.End.Before(call.Start), "times of %s", call.Method)
	}
	assert.Equal(t, []string{
		"RuntimeService Version OK", "RuntimeService StopContainer NotFound", "RuntimeService ReopenContainerLog Unimplemented",
		"RuntimeService ExecSync OK", "RuntimeService Levitate OK",
	}, methods)
}

func TestPassesOnStreams(t *testing.T) {
	p, client, _, _ := newProxy(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	require.NoError(t, err)
	for _, id := range []string{"a", "b", "c"} {
		event, err := stream.Recv()
		require.NoError(t, err)
		assert.Equal(t, id, event.GetContainerId())
	}
	calls := p.Calls()
	require.Len(t, calls, 1)
	assert.True(t, calls[0].Running)
	cancel()
	_, err = stream.Recv()
	assert.Equal(t, codes.Canceled, status.Code(err))
	assert.Eventually(t, func() bool { return !p.Calls()[0].Running }, 5*time.Second, 10*time.Millisecond, "the caller's end ends the call")
}

func TestTellsWhoseCallsAre(t *testing.T) {
	p, client, images, _ := newProxy(t)
	ctx := t.Context()
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: "new"}}
	state := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for _, tc := range []struct {
		name string
		call func() error
		want Call
	}{
		{"everything", func() error {
			_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		}, Call{Method: "ListContainers"}},
		{"everything, by an empty filter", func() error {
			_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{}})
			return err
		}, Call{Method: "ListContainers"}},
		{"all that runs", func() error {
			_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: state}})
			return err
		}, Call{Method: "ListContainers", Filtered: true}},
		{"containers by pod", func() error {
			_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{podUIDLabel: "new"}}})
			return err
		}, Call{Method: "ListContainers", Filtered: true, PodUID: "new"}},
		{"a container by its id", func() error {
			_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "c-old"}})
			return err
		}, Call{Method: "ListContainers", Filtered: true, ContainerID: "c-old", PodUID: "old"}},
		{"a sandbox by its id", func() error {
			_, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "s-old"}})
			return err
		}, Call{Method: "ListPodSandbox", Filtered: true, SandboxID: "s-old", PodUID: "old"}},
		{"a new sandbox", func() error {
			_, err := client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
			return err
		}, Call{Method: "RunPodSandbox", PodUID: "new"}},
		{"a new container", func() error {
			_, err := client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "s-new", SandboxConfig: config})
			return err
		}, Call{Method: "CreateContainer", SandboxID: "s-new", PodUID: "new"}},
		{"containers by the sandbox that was new", func() error {
			_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: "s-new"}})
			return err
		}, Call{Method: "ListContainers", Filtered: true, SandboxID: "s-new", PodUID: "new"}},
		{"the container that was new", func() error {
			_, err := client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c-new"})
			return err
		}, Call{Method: "StopContainer", ContainerID: "c-new", PodUID: "new"}},
		{"a container from before the proxy", func() error {
			_, err := client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "c-old"})
			return err
		}, Call{Method: "ContainerStatus", ContainerID: "c-old", PodUID: "old"}},
		{"an unknown container", func() error {
			_, err := client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "c-strange"})
			return err
		}, Call{Method: "ContainerStatus", ContainerID: "c-strange"}},
		{"an image", func() error {
			_, err := images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "app:1"}})
			return err
		}, Call{Service: "ImageService", Method: "ImageStatus", Image: "app:1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.Reset()
			require.NoError(t, tc.call())
			calls := p.Calls()
			require.Len(t, calls, 1)
			got := calls[0]
			got.Start, got.End, got.Running = time.Time{}, time.Time{}, false
			if tc.want.Service == "" {
				tc.want.Service = "RuntimeService"
			}
			assert.Equal(t, tc.want, got)
			assert.Equal(t, tc.want.PodUID == "", got.WholeNode())
		})
	}
}

func TestFaults(t *testing.T) {
	p, client, _, _ := newProxy(t)
	ctx := t.Context()
	all := func() error {
		_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		return err
	}
	one := func(ctx context.Context) error {
		_, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "c-old"}})
		return err
	}

	remove := p.Inject(Fault{Method: "ListContainers", When: Filtered, Err: Failed})
	require.NoError(t, all(), "a list without a filter")
	assert.Equal(t, codes.Unknown, status.Code(one(ctx)), "a list with a filter")
	_, err := client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c-old"})
	require.NoError(t, err, "another method")
	assert.Equal(t, map[string]int{"ListContainers": 1}, Count(p.Calls(), func(c Call) bool { return c.Injected }))
	remove()
	remove()
	require.NoError(t, one(ctx), "after the fault")

	remove = p.Inject(Fault{When: func(call Call, request proto.Message) bool {
		stop, ok := request.(*runtimeapi.StopContainerRequest)
		return ok && call.PodUID == "old" && stop.GetTimeout() == 0
	}, Err: Unavailable})
	_, err = client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c-old", Timeout: 5})
	require.NoError(t, err)
	_, err = client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "c-old"})
	assert.Equal(t, codes.Unavailable, status.Code(err))
	remove()

	p.Inject(Fault{Method: "ListContainers", When: About("old")})
	limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	assert.Equal(t, codes.DeadlineExceeded, status.Code(one(limited)), "a call that hangs ends with its context")
	require.NoError(t, all())
	done := make(chan error, 1)
	go func() { done <- one(ctx) }()
	assert.Eventually(t, func() bool { calls := p.Calls(); return calls[len(calls)-1].Running }, 5*time.Second, 5*time.Millisecond)
	require.NoError(t, p.Close())
	assert.Error(t, <-done, "a call that hangs ends with the proxy")
}

func TestStartNamesTheRuntimeThatIsNotThere(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Start(ctx, filepath.Join(t.TempDir(), "proxy.sock"), "/nowhere/runtime.sock")
	require.ErrorContains(t, err, "/nowhere/runtime.sock")
}
