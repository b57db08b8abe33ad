package testnode

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"k8s.io/client-go/rest"
)

// KubeletPort is the kubelet's authenticated port.
const KubeletPort = "10250"

// Get returns the body of a response with the status 200; any other status is an error.
func Get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %.500s", url, response.Status, body)
	}
	return body, nil
}

// GetFromKubelet reads a path of the authenticated port of the kubelet at an address.
func GetFromKubelet(ctx context.Context, config *rest.Config, address, path string) ([]byte, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return Get(ctx, client, "https://"+net.JoinHostPort(address, KubeletPort)+path)
}
