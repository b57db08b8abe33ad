package testnode

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Listed is a running container of a pod as its runtime reports it.
type Listed struct {
	// Container is without processes.
	Container
	// PID and SandboxPID are the first processes of the container and of its sandbox, as
	// the runtime's PID namespace numbers them; that of a sandbox that has ended is 0.
	PID, SandboxPID int
	// SandboxID is the runtime's name for the sandbox.
	SandboxID string
}

// List returns the running containers of pods, without sandboxes, sorted by their names.
// One that ends meanwhile may be missing.
func List(ctx context.Context, client runtimeapi.RuntimeServiceClient) ([]Listed, error) {
	list, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
	})
	if err != nil {
		return nil, err
	}
	var found []Listed
	// Several containers share a sandbox.
	sandboxes := map[string]int{}
	for _, container := range list.GetContainers() {
		listed, err := describe(ctx, client, container, sandboxes)
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", container.GetId(), err)
		}
		found = append(found, listed)
	}
	slices.SortFunc(found, func(a, b Listed) int {
		return cmp.Or(cmp.Compare(a.PodNamespace, b.PodNamespace), cmp.Compare(a.PodName, b.PodName), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return found, nil
}

func describe(ctx context.Context, client runtimeapi.RuntimeServiceClient, container *runtimeapi.Container, sandboxes map[string]int) (Listed, error) {
	response, err := client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container.GetId(), Verbose: true})
	if err != nil {
		return Listed{}, err
	}
	pid, err := verbosePID(response.GetInfo())
	if err != nil {
		return Listed{}, err
	}
	sandbox, known := sandboxes[container.GetPodSandboxId()]
	if !known {
		response, err := client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: container.GetPodSandboxId(), Verbose: true})
		if err != nil {
			return Listed{}, err
		}
		if response.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			if sandbox, err = verbosePID(response.GetInfo()); err != nil {
				return Listed{}, fmt.Errorf("sandbox %s: %w", container.GetPodSandboxId(), err)
			}
		}
		sandboxes[container.GetPodSandboxId()] = sandbox
	}
	labels := container.GetLabels()
	return Listed{
		Container: Container{
			PodUID:       labels["io.kubernetes.pod.uid"],
			PodNamespace: labels["io.kubernetes.pod.namespace"],
			PodName:      labels["io.kubernetes.pod.name"],
			Name:         labels["io.kubernetes.container.name"],
			ID:           container.GetId(),
			StartedAt:    time.Unix(0, response.GetStatus().GetStartedAt()),
		},
		PID: pid, SandboxPID: sandbox, SandboxID: container.GetPodSandboxId(),
	}, nil
}

// verbosePID reads the process id from the part of a CRI response that is the
// runtime's own.
func verbosePID(info map[string]string) (int, error) {
	var verbose struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &verbose); err != nil {
		return 0, fmt.Errorf("reading the verbose status: %w", err)
	}
	return verbose.PID, nil
}

// Images are the images of a containerd.
type Images struct {
	// Ctr runs ctr on the node, with these arguments after those that select the runtime
	// and the namespace of Kubernetes, and returns what it printed.
	Ctr func(ctx context.Context, args ...string) (string, error)
}

// Tag implements Runtime.
func (i Images) Tag(ctx context.Context, image, name string) error {
	_, err := i.Ctr(ctx, "images", "tag", "--force", image, name)
	return err
}

// Untag implements Runtime.
func (i Images) Untag(ctx context.Context, name string) error {
	_, err := i.Ctr(ctx, "images", "remove", name)
	return err
}

// Digest implements Runtime.
func (i Images) Digest(ctx context.Context, image string) (string, error) {
	table, err := i.Ctr(ctx, "images", "list", "name=="+image)
	if err != nil {
		return "", err
	}
	return parseDigest(table, image)
}

// savedImage is where an image is while the runtime does not have it: a path of the node.
const savedImage = "/var/lib/containerd/e2e-image.tar"

// RemoveImage implements Runtime.
func (i Images) RemoveImage(ctx context.Context, image string) (restore func(context.Context) error, err error) {
	digest, err := i.Digest(ctx, image)
	if err != nil {
		return nil, err
	}
	table, err := i.Ctr(ctx, "images", "list")
	if err != nil {
		return nil, err
	}
	// Without --local, ctr of containerd 2 may end before it has written all that it receives
	// (MarshalAny in core/transfer/archive/exporter.go): the archive is cut, without an error.
	if _, err := i.Ctr(ctx, "images", "export", "--local", savedImage, image); err != nil {
		return nil, err
	}
	restore = func(ctx context.Context) error {
		_, err := i.Ctr(ctx, "images", "import", savedImage)
		return err
	}
	_, err = i.Ctr(ctx, append([]string{"images", "remove", "--sync"}, parseNames(table, digest)...)...)
	return restore, err
}

// parseNames reads the names of the image with a digest from the table of
// `ctr images list`.
func parseNames(table, digest string) (names []string) {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == digest {
			names = append(names, fields[0])
		}
	}
	return names
}

// parseDigest reads the digest of an image from the table of `ctr images list`.
func parseDigest(table, image string) (string, error) {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == image {
			return fields[2], nil
		}
	}
	return "", fmt.Errorf("image %s is not in the runtime's list: %s", image, table)
}
