// Package cri asks the container runtime of the node which containers run.
package cri

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"

	timeout = 10 * time.Second
	// A list of all containers of a node with many labels is larger than gRPC's default.
	maxMessage = 16 << 20
)

// Container is a container of a pod that runs. Its ID belongs to one run: a container
// that was started again has another.
type Container struct {
	ID        string    `json:"id"`
	PodUID    types.UID `json:"podUID"`
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	Name      string    `json:"name"`
	// Image and Generation are those of the pod's spec, and Static reports that the pod comes
	// from a file or a URL. The runtime does not know them: they are empty for a container
	// whose pod was not read.
	Image      string `json:"image,omitempty"`
	Generation int64  `json:"generation,omitempty"`
	Static     bool   `json:"static,omitempty"`
}

// String is namespace/pod/container.
func (c Container) String() string { return c.Namespace + "/" + c.Pod + "/" + c.Name }

// Runtime is the container runtime of a node.
type Runtime struct {
	Root host.Root
	// Endpoint is the path of its socket on the node.
	Endpoint string
}

// Running returns the containers of pods that run. A container that is stopped at the
// moment does not count.
func (r Runtime) Running(ctx context.Context) ([]Container, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+r.Root.Path(r.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("the container runtime at %s: %w", r.Endpoint, err)
	}
	defer conn.Close()
	list, err := runtimeapi.NewRuntimeServiceClient(conn).ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
	})
	if err != nil {
		return nil, fmt.Errorf("the container runtime at %s: list the containers: %w", r.Endpoint, err)
	}
	var containers []Container
	for _, c := range list.Containers {
		if c.Labels[labelPodUID] == "" {
			continue // not of a kubelet
		}
		containers = append(containers, Container{
			ID: c.Id, PodUID: types.UID(c.Labels[labelPodUID]), Namespace: c.Labels[labelPodNamespace],
			Pod: c.Labels[labelPodName], Name: c.Labels[labelContainerName],
		})
	}
	return containers, nil
}

// usual are the sockets of runtimes, for a kubelet that names none.
var usual = []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock"}

// Socket returns the path of the socket that an endpoint names, as the kubelet has it in
// its configuration. Without an endpoint it is the first usual one that is there.
func Socket(root host.Root, endpoint string) (string, error) {
	if endpoint != "" {
		path := strings.TrimPrefix(endpoint, "unix://")
		if !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("the endpoint of the container runtime, %s, is not a socket of the node", endpoint)
		}
		return path, nil
	}
	for _, path := range usual {
		if root.Exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no container runtime found: the kubelet names no endpoint, and none of %s is there", strings.Join(usual, ", "))
}
