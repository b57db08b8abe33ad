// Package paging reads lists page by page.
package paging

import (
	"cmp"
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// size is how many objects are read at a time: an API server sends some 10 KB for each node.
const size = 500

// Each passes one page after the other to use, until it returns false, and returns the resource
// version of the list. Pages have options.Limit objects, 500 by default.
func Each[L metav1.ListInterface](ctx context.Context, options metav1.ListOptions, list func(context.Context, metav1.ListOptions) (L, error), use func(L) bool) (string, error) {
	options.Limit = cmp.Or(options.Limit, size)
	for {
		page, err := list(ctx, options)
		if err != nil {
			return "", err
		}
		if !use(page) || page.GetContinue() == "" {
			return page.GetResourceVersion(), nil
		}
		options.Continue = page.GetContinue()
	}
}
