package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHandler(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kept")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o644))
	exit := make(chan int, 1)
	h := handler(options{file: file}, "pod-a", time.Now(), exit)
	get := func(path string) (int, string) {
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
		return recorder.Code, recorder.Body.String()
	}
	status := func(path string) int { code, _ := get(path); return code }

	require.Equal(t, http.StatusOK, status("/healthz"))
	require.Equal(t, http.StatusOK, status("/fail?on=true"))
	require.Equal(t, http.StatusServiceUnavailable, status("/healthz"))
	require.Equal(t, http.StatusServiceUnavailable, status("/readyz"))
	require.Equal(t, http.StatusOK, status("/fail?on=false"))
	require.Equal(t, http.StatusOK, status("/healthz"))
	require.Equal(t, http.StatusBadRequest, status("/fail?on=perhaps"))

	_, body := get("/file")
	require.Equal(t, "precious", body)
	_, body = get("/info")
	require.Contains(t, body, `"hostname":"pod-a"`)
	require.Contains(t, body, `"file":"precious"`)

	require.Equal(t, http.StatusBadRequest, status("/exit?code=256"))
	require.Empty(t, exit)
	require.Equal(t, http.StatusOK, status("/exit?code=3"))
	require.Equal(t, 3, <-exit)
}

func TestHoldFileKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "volume", "file")
	for _, content := range []string{"first", "second"} {
		f, err := holdFile(path, content)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "first", string(content))
}

func TestRunForEndsWithItsExitCode(t *testing.T) {
	code, err := run(options{runFor: time.Millisecond, exitCode: 5})
	require.NoError(t, err)
	require.Equal(t, 5, code)
}
