package testnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"k8s.io/client-go/rest"
)

// errKeyNotFound says that etcd has no such key.
var errKeyNotFound = errors.New("key not found in etcd")

// Etcd reads and writes keys without the API server.
type Etcd struct {
	// Endpoint is etcd's URL or its host and port.
	Endpoint string
	// TLS are the files of a client certificate and of etcd's authority.
	TLS rest.TLSClientConfig
}

// Get implements Storage.
func (e Etcd) Get(ctx context.Context, key string) ([]byte, error) {
	var value []byte
	err := e.Do(ctx, "reading "+key, func(client *clientv3.Client) error {
		response, err := client.Get(ctx, key)
		if err != nil {
			return err
		}
		if len(response.Kvs) == 0 {
			return errKeyNotFound
		}
		value = response.Kvs[0].Value
		return nil
	})
	return value, err
}

// Put implements Storage.
func (e Etcd) Put(ctx context.Context, key string, value []byte) error {
	return e.Do(ctx, "writing "+key, func(client *clientv3.Client) error {
		_, err := client.Put(ctx, key, string(value))
		return err
	})
}

// Delete implements Storage.
func (e Etcd) Delete(ctx context.Context, key string) error {
	return e.Do(ctx, "deleting "+key, func(client *clientv3.Client) error {
		response, err := client.Delete(ctx, key)
		if err == nil && response.Deleted == 0 {
			return errKeyNotFound
		}
		return err
	})
}

// Do calls f with a client. The error says what was done.
func (e Etcd) Do(ctx context.Context, what string, f func(*clientv3.Client) error) error {
	tls, err := rest.TLSConfigFor(&rest.Config{TLSClientConfig: e.TLS})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	client, err := clientv3.New(clientv3.Config{
		Context:     ctx,
		Endpoints:   []string{e.Endpoint},
		DialTimeout: 10 * time.Second,
		TLS:         tls,
		Logger:      zap.NewNop(),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer client.Close()
	if err := f(client); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
