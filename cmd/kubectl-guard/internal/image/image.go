// Package image compares names of images: tags, digests and repositories.
package image

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/rollout"
)

var digestPattern = regexp.MustCompile(`@(sha256:[0-9a-f]{64})$`)

// HasDigest reports whether an image is named by its digest, which nobody can move.
func HasDigest(image string) bool { return digestPattern.MatchString(image) }

// Name is an image without tag and digest.
func Name(image string) string {
	name, _, _ := strings.Cut(image, "@")
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		name = name[:colon]
	}
	return name
}

// Repository is the name of an image without tag and digest, as container runtimes complete
// it.
func Repository(image string) string {
	name := Name(image)
	host, rest, found := strings.Cut(name, "/")
	switch {
	case !found:
		return "docker.io/library/" + name
	case host == "index.docker.io":
		return "docker.io/" + rest
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		return "docker.io/" + name
	}
	return name
}

// DigestOf is the digest of the image that a pod of an installer runs, as its kubelet reports.
// It is empty when the runtime did not pull it from the image's repository: an image that was
// loaded by hand has none.
func DigestOf(pod *corev1.Pod, image string) string {
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name != rollout.Container {
			continue
		}
		id := strings.TrimPrefix(status.ImageID, "docker-pullable://")
		if digest := digestPattern.FindStringSubmatch(id); digest != nil && Repository(id) == Repository(image) {
			return digest[1]
		}
	}
	return ""
}
