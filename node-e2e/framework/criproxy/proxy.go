package criproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kubelet-guard.io/node-e2e/framework/unixsocket"
)

const (
	// maxMessage is the limit of the kubelet's own client (k8s.io/cri-client).
	maxMessage = 16 << 20
	// reconnect bounds the wait for a runtime that comes back. The kubelet's own
	// client waits up to 3 s.
	reconnect = time.Second
	// firstLook bounds the question what is there already.
	firstLook = 10 * time.Second
)

// Unavailable is the response of a runtime that is not there.
var Unavailable = status.Error(codes.Unavailable, "criproxy: the runtime is not available")

// Failed is the response of a runtime in which something is broken.
var Failed = status.Error(codes.Unknown, "criproxy: the runtime failed")

// Fault makes calls fail. They do not reach the runtime.
type Fault struct {
	// Method is the method without its service, such as "ListContainers"; empty
	// means all.
	Method string
	// When says which calls; nil means all. The request is nil for a method that
	// this version of the CRI does not have. When must not call the Proxy.
	When func(call Call, request proto.Message) bool
	// Err is the response, at best an error of google.golang.org/grpc/status. Nil
	// means no response at all: the call hangs until its caller gives up.
	Err error
}

// Proxy passes on calls between a kubelet and a container runtime. Its methods may
// be called concurrently.
type Proxy struct {
	socket string
	server *grpc.Server
	target *grpc.ClientConn
	served sync.WaitGroup
	closed func() error

	mu     sync.Mutex
	known  known
	calls  []*entry
	faults []*Fault
}

// Start listens on the socket, a path of at most 107 bytes at which nothing is, and
// passes on to the runtime's socket, whose path may be longer. The runtime must
// respond: what it runs already is listed once, so that calls about it can be attributed
// apart. The context bounds the start only.
func Start(ctx context.Context, socket, runtimeSocket string) (*Proxy, error) {
	p := &Proxy{socket: socket, known: newKnown()}
	backOff := backoff.DefaultConfig
	backOff.BaseDelay, backOff.MaxDelay = 100*time.Millisecond, reconnect
	var err error
	p.target, err = unixsocket.Client(runtimeSocket,
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backOff, MinConnectTimeout: reconnect}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, err
	}
	if err := p.look(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("list what runs in %s: %w", runtimeSocket, err), p.target.Close())
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, errors.Join(err, p.target.Close())
	}
	p.server = grpc.NewServer(
		grpc.UnknownServiceHandler(p.pass),
		grpc.ForceServerCodec(rawCodec{}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	p.served.Go(func() { _ = p.server.Serve(listener) })
	p.closed = sync.OnceValue(func() error {
		p.server.Stop()
		p.served.Wait()
		return p.target.Close()
	})
	return p, nil
}

// look learns what the runtime has before the first call comes.
func (p *Proxy) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	client := runtimeapi.NewRuntimeServiceClient(p.target)
	sandboxes, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	containers, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known.learn(nil, sandboxes)
	p.known.learn(nil, containers)
	return nil
}

// Endpoint is the value for containerRuntimeEndpoint in the kubelet's configuration.
func (p *Proxy) Endpoint() string { return "unix://" + p.socket }

// Close ends all calls and removes the socket. Further calls do nothing.
func (p *Proxy) Close() error { return p.closed() }

// Inject makes calls fail from now on, until the returned function is called. Of
// several faults for one call the first one counts.
func (p *Proxy) Inject(fault Fault) (remove func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, &fault)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i := range p.faults {
			if p.faults[i] == &fault {
				// A new slice: pass may be reading the old one.
				p.faults = append(append([]*Fault(nil), p.faults[:i]...), p.faults[i+1:]...)
				return
			}
		}
	}
}

// pass is the handler of all methods.
func (p *Proxy) pass(_ any, server grpc.ServerStream) error {
	name, ok := grpc.MethodFromServerStream(server)
	if !ok {
		return status.Error(codes.Internal, "criproxy: a call without a method")
	}
	var first frame
	if err := server.RecvMsg(&first); err != nil {
		return err
	}
	m := methodOf(name)
	request := m.decodeRequest(first.data)
	entry, fault := p.note(m, request)
	if fault == nil {
		err := p.forward(name, server, &first, func(answer []byte) { p.answered(m, request, answer) })
		p.ended(entry, err)
		return err
	}
	err := fault.Err
	if err == nil {
		<-server.Context().Done()
		err = status.FromContextError(server.Context().Err()).Err()
	}
	p.ended(entry, err)
	return err
}

// note writes the call down and says which fault it meets, if any.
func (p *Proxy) note(m method, request proto.Message) (*entry, *Fault) {
	e := &entry{subject: subjectOf(m, request)}
	e.Call = Call{Service: m.service, Method: m.name, Start: time.Now(), Code: codes.OK, Running: true}
	p.mu.Lock()
	e.resolve(p.known)
	p.calls = append(p.calls, e)
	call, faults := e.Call, p.faults
	p.mu.Unlock()
	for _, fault := range faults {
		if (fault.Method == "" || fault.Method == m.name) && (fault.When == nil || fault.When(call, request)) {
			p.mu.Lock()
			e.Injected = true
			p.mu.Unlock()
			return e, fault
		}
	}
	return e, nil
}

func (p *Proxy) answered(m method, request proto.Message, answer []byte) {
	if !m.teaches {
		return
	}
	response := m.decodeResponse(answer)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known.learn(request, response)
}

func (p *Proxy) ended(e *entry, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.Running, e.Code, e.End = false, status.Code(err), time.Now()
}

// forward passes on one call whose first message has been read.
func (p *Proxy) forward(name string, server grpc.ServerStream, first *frame, answered func([]byte)) error {
	ctx, cancel := context.WithCancel(server.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md.Copy())
	}
	client, err := p.target.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, name, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		return err
	}
	// The error of a message that could not be sent is what RecvMsg returns.
	_ = client.SendMsg(first)
	go func() {
		for {
			var next frame
			if err := server.RecvMsg(&next); err != nil {
				if errors.Is(err, io.EOF) {
					_ = client.CloseSend()
				} else {
					cancel()
				}
				return
			}
			if client.SendMsg(&next) != nil {
				return
			}
		}
	}()
	for started := false; ; started = true {
		var answer frame
		err := client.RecvMsg(&answer)
		if !started {
			if md, headerErr := client.Header(); headerErr == nil && len(md) > 0 {
				_ = server.SetHeader(md)
			}
		}
		if err != nil {
			server.SetTrailer(client.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		answered(answer.data)
		if err := server.SendMsg(&answer); err != nil {
			return err
		}
	}
}

// frame is a message that nobody has looked into.
type frame struct{ data []byte }

// rawCodec hands over messages as they are. Its name is that of the codec that both
// ends use.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("criproxy: cannot encode %T", v)
	}
	return f.data, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("criproxy: cannot decode into %T", v)
	}
	// The buffer is the caller's to use again.
	f.data = append([]byte(nil), data...)
	return nil
}
