package main

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

func TestDrainingServerEndsConnectionsOnceItStops(t *testing.T) {
	var stopping atomic.Bool
	server := drainingServer{Server: webhook.NewServer(webhook.Options{}), stopping: &stopping, callers: &callers{}}
	server.Register("/validate/anything", http.HandlerFunc(func(response http.ResponseWriter, _ *http.Request) {
		response.WriteHeader(http.StatusOK)
	}))
	listening := httptest.NewServer(server.WebhookMux())
	defer listening.Close()
	for _, stops := range []bool{false, true} {
		stopping.Store(stops)
		response, err := listening.Client().Get(listening.URL + "/validate/anything")
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, stops, response.Close)
	}
}
