package pool

import (
	"cmp"
	"fmt"

	"kubelet-guard.io/pkg/rollout"
)

// DescribeRequest is "Audit, image registry/installer:1".
func DescribeRequest(r rollout.Request) string {
	if r.Target == rollout.Stock {
		return "Stock, the kubelet that the node had before the first roll-out"
	}
	text := fmt.Sprintf("%s, image %s", r.Target, cmp.Or(r.ImageName, r.Image))
	if r.KubeletVersion != "" {
		text += ", kubelet " + r.KubeletVersion
	}
	return text
}
