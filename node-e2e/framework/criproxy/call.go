package criproxy

import (
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podUIDLabel is what the kubelet writes on every sandbox and container
// (k8s.io/kubelet/pkg/types).
const podUIDLabel = "io.kubernetes.pod.uid"

// Call is one call that came.
type Call struct {
	// Service is "RuntimeService" or "ImageService", Method for instance
	// "StopContainer".
	Service, Method string
	// PodUID is the pod that the call is about. Empty: it is about the whole node,
	// about an image, or about something unknown.
	PodUID string
	// SandboxID and ContainerID are what the request names, also in a filter.
	SandboxID, ContainerID string
	// Image is the reference of an image that the request names.
	Image string
	// Filtered: a list of some things only, by id, sandbox, label or state.
	Filtered bool
	// Injected: a Fault has responded, and the runtime knows nothing of it.
	Injected bool
	// Running: the call has not ended yet; End and Code come with its end.
	Running    bool
	Start, End time.Time
	Code       codes.Code
}

// WholeNode reports whether the call is about no pod in particular.
func (c Call) WholeNode() bool { return c.PodUID == "" }

// Filtered is a Fault's condition: lists of some things only.
func Filtered(call Call, _ proto.Message) bool { return call.Filtered }

// About returns a Fault's condition: calls about one pod.
func About(uid string) func(Call, proto.Message) bool {
	return func(call Call, _ proto.Message) bool { return call.PodUID == uid }
}

// Calls returns the calls since the start or the last Reset, in the order in which
// they came. Whose call one is may be known only later than it came, for instance
// for a container that the runtime names in a list afterwards; it is said as well as
// it is known now.
func (p *Proxy) Calls() []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls := make([]Call, len(p.calls))
	for i, e := range p.calls {
		e.resolve(p.known)
		calls[i] = e.Call
	}
	return calls
}

// Reset forgets the calls that have come so far, but not what is known from them.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = nil
}

// Count returns how many calls of each method fit; nil fits all.
func Count(calls []Call, fits func(Call) bool) map[string]int {
	counts := map[string]int{}
	for _, call := range calls {
		if fits == nil || fits(call) {
			counts[call.Method]++
		}
	}
	return counts
}

// entry is a Call and what is needed to find out later whose it is.
type entry struct {
	Call
	subject subject
}

// subject is what a request is about, in its own words.
type subject struct {
	podUID, sandboxID, containerID, image string
	filtered                              bool
}

func (e *entry) resolve(k known) {
	s := e.subject
	e.SandboxID, e.ContainerID, e.Image, e.Filtered = s.sandboxID, s.containerID, s.image, s.filtered
	switch {
	case e.PodUID != "":
	case s.podUID != "":
		e.PodUID = s.podUID
	case s.containerID != "":
		e.PodUID = k.containers[s.containerID]
	case s.sandboxID != "":
		e.PodUID = k.sandboxes[s.sandboxID]
	}
}

// known are the pods' UIDs by what the runtime calls their parts. Nothing is ever
// forgotten: calls about what is gone are part of the pod's life.
type known struct{ sandboxes, containers map[string]string }

func newKnown() known {
	return known{sandboxes: map[string]string{}, containers: map[string]string{}}
}

// learn takes what a response says about who is who. The request may be nil for lists.
func (k known) learn(request, response proto.Message) {
	switch r := response.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		if run, ok := request.(*runtimeapi.RunPodSandboxRequest); ok {
			k.add(k.sandboxes, r.GetPodSandboxId(), run.GetConfig().GetMetadata().GetUid())
		}
	case *runtimeapi.CreateContainerResponse:
		if create, ok := request.(*runtimeapi.CreateContainerRequest); ok {
			uid := create.GetSandboxConfig().GetMetadata().GetUid()
			if uid == "" {
				uid = k.sandboxes[create.GetPodSandboxId()]
			}
			k.add(k.containers, r.GetContainerId(), uid)
		}
	case *runtimeapi.ListPodSandboxResponse:
		k.addSandboxes(r.GetItems())
	case *runtimeapi.StreamPodSandboxesResponse:
		k.addSandboxes(r.GetPodSandboxes())
	case *runtimeapi.ListContainersResponse:
		k.addContainers(r.GetContainers())
	case *runtimeapi.StreamContainersResponse:
		k.addContainers(r.GetContainers())
	}
}

func (k known) addSandboxes(sandboxes []*runtimeapi.PodSandbox) {
	for _, s := range sandboxes {
		k.add(k.sandboxes, s.GetId(), s.GetLabels()[podUIDLabel])
	}
}

func (k known) addContainers(containers []*runtimeapi.Container) {
	for _, c := range containers {
		uid := c.GetLabels()[podUIDLabel]
		k.add(k.containers, c.GetId(), uid)
		k.add(k.sandboxes, c.GetPodSandboxId(), uid)
	}
}

func (k known) add(uids map[string]string, id, uid string) {
	if id != "" && uid != "" {
		uids[id] = uid
	}
}

// subjectOf reads from a request what it is about. The messages of the CRI use the
// same names for the same things throughout.
func subjectOf(m method, request proto.Message) subject {
	var s subject
	if request == nil {
		return s
	}
	read := func(message proto.Message) {
		if r, ok := message.(interface{ GetPodSandboxId() string }); ok {
			s.sandboxID = r.GetPodSandboxId()
		}
		if r, ok := message.(interface{ GetContainerId() string }); ok {
			s.containerID = r.GetContainerId()
		}
		if r, ok := message.(interface{ GetLabelSelector() map[string]string }); ok {
			s.podUID = r.GetLabelSelector()[podUIDLabel]
		}
	}
	read(request)
	switch r := request.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		s.podUID = r.GetConfig().GetMetadata().GetUid()
	case *runtimeapi.CreateContainerRequest:
		s.podUID = r.GetSandboxConfig().GetMetadata().GetUid()
	case *runtimeapi.PullImageRequest:
		s.podUID, s.image = r.GetSandboxConfig().GetMetadata().GetUid(), r.GetImage().GetImage()
	case *runtimeapi.ImageStatusRequest:
		s.image = r.GetImage().GetImage()
	case *runtimeapi.RemoveImageRequest:
		s.image = r.GetImage().GetImage()
	}
	// Lists, and the streams of the same.
	field := request.ProtoReflect().Descriptor().Fields().ByName("filter")
	if field == nil || !request.ProtoReflect().Has(field) {
		return s
	}
	filter := request.ProtoReflect().Get(field).Message().Interface()
	s.filtered = proto.Size(filter) > 0
	read(filter)
	if r, ok := filter.(interface{ GetId() string }); ok && r.GetId() != "" {
		if strings.Contains(m.name, "Sandbox") {
			s.sandboxID = r.GetId()
		} else {
			s.containerID = r.GetId()
		}
	}
	return s
}

// method is a method of the CRI, or one that this version does not have.
type method struct {
	service, name string
	// request and response are nil for a method that this version does not have.
	request, response protoreflect.MessageType
	// teaches: the response says who is who.
	teaches bool
}

// methodOf takes a full name such as "/runtime.v1.RuntimeService/Version".
func methodOf(full string) method {
	service, name, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	m := method{service: service[strings.LastIndex(service, ".")+1:], name: name}
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return m
	}
	described, ok := descriptor.(protoreflect.ServiceDescriptor)
	if !ok {
		return m
	}
	rpc := described.Methods().ByName(protoreflect.Name(name))
	if rpc == nil {
		return m
	}
	request, err := protoregistry.GlobalTypes.FindMessageByName(rpc.Input().FullName())
	if err != nil {
		return m
	}
	response, err := protoregistry.GlobalTypes.FindMessageByName(rpc.Output().FullName())
	if err != nil {
		return m
	}
	m.request, m.response = request, response
	switch name {
	case "RunPodSandbox", "CreateContainer", "ListPodSandbox", "StreamPodSandboxes", "ListContainers", "StreamContainers":
		m.teaches = true
	}
	return m
}

func (m method) decodeRequest(data []byte) proto.Message { return decode(m.request, data) }

func (m method) decodeResponse(data []byte) proto.Message { return decode(m.response, data) }

// decode returns nil for what cannot be read: it is passed on all the same.
func decode(kind protoreflect.MessageType, data []byte) proto.Message {
	if kind == nil {
		return nil
	}
	message := kind.New().Interface()
	if proto.Unmarshal(data, message) != nil {
		return nil
	}
	return message
}
