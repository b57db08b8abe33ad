module kubelet-guard.io

go 1.26.0

// Trees that hold no package of this module: upstream work trees and files that
// belong to them.
ignore (
	./_output
	./patches
)
