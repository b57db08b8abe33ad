package main

import (
	"net/http"
	"sync/atomic"

	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

// drainingServer has the API server give up its connections before it stops. The API
// server keeps connections to all replicas in one pool. A request that it sends on
// one while this end closes it fails, and where the failure policy is Ignore it then
// passes without having been judged.
type drainingServer struct {
	webhook.Server
	stopping *atomic.Bool
	callers  *callers
}

// Register implements webhook.Server. Only callers get through, a few at a time.
func (s drainingServer) Register(path string, hook http.Handler) {
	hook = s.callers.only(inTurn(hook))
	s.Server.Register(path, http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		if s.stopping.Load() {
			response.Header().Set("Connection", "close")
		}
		hook.ServeHTTP(response, request)
	}))
}
