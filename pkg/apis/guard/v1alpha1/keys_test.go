package v1alpha1_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// The kubelet and the webhook must protect the same pods.
func TestTheLabelIsThatOfTheKubelet(t *testing.T) {
	assert.Equal(t, guard.ExplicitDeletionLabel, guardv1alpha1.ExplicitDeletionLabel)
	assert.Equal(t, guard.ExplicitDeletionRequired, guardv1alpha1.ExplicitDeletionRequired)
}
