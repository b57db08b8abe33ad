package embedded

import (
	"io"
	"path/filepath"

	"kubelet-guard.io/node-e2e/images"
)

// Image is a container image with one static program in one layer. Its
// entrypoint is the program, at the root of the file system.
type Image struct {
	// Name is the full reference, such as localhost/guard/workload:dev. It should
	// name no registry, so that nothing tries to pull it.
	Name string
	// Program is the path of the program's file.
	Program string
}

// nodeImages are the images that every cluster has.
func nodeImages(nodeDir string) []Image {
	return []Image{
		{Name: PauseImage, Program: filepath.Join(nodeDir, "pause")},
		{Name: WorkloadImage, Program: filepath.Join(nodeDir, "workload")},
	}
}

// writeImages writes one archive with the images, in the form of `docker save`.
func writeImages(w io.Writer, programs []Image) error {
	var list []images.Image
	for _, p := range programs {
		list = append(list, images.Program(p.Name, p.Program))
	}
	return images.Write(w, list...)
}
