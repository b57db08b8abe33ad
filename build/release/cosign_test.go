package release

import (
	"crypto/sha256"
	"encoding/base64"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The commands of docs/releases.md, with cosign itself (make test-cosign): what it signs, Verify
// accepts, and what the other tests sign in its form, it accepts.
func TestSignaturesWithCosign(t *testing.T) {
	program := os.Getenv("COSIGN")
	if program == "" {
		t.Skip("COSIGN names no program; make test-cosign builds it")
	}
	dir := assembled(t, testRelease, testPrograms(t))
	keys := t.TempDir()
	cosign := func(args ...string) error {
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		// Its cache is in the home folder. No service is to be reached: this address has no proxy.
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "HOME="+keys, "HTTPS_PROXY=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1")
		out, err := cmd.CombinedOutput()
		t.Logf("cosign %v: %v: %s", args, err, out)
		return err
	}
	require.NoError(t, cosign("generate-key-pair", "--output-key-prefix="+filepath.Join(keys, "cosign")))
	private, public := filepath.Join(keys, "cosign.key"), filepath.Join(keys, "cosign.pub")
	noServices := filepath.Join(keys, "no-services.json")
	require.NoError(t, cosign("signing-config", "create", "--out", noServices))
	require.NoError(t, cosign("sign-blob", "--key", private, "--signing-config", noServices, "--bundle", checksumsSignatureFile, checksumsFile))
	require.NoError(t, cosign("attest-blob", "--key", private, "--signing-config", noServices, "--statement", provenanceFile, "--bundle", provenanceSignatureFile))

	require.NoError(t, Verify(t.Context(), dir, public, io.Discard))
	_, foreign := newKey(t)
	require.ErrorContains(t, Verify(t.Context(), dir, foreign, io.Discard), "not a signature of SHA256SUMS by this key")

	verifyBlob := func(key string) error {
		return cosign("verify-blob", "--key", key, "--bundle", checksumsSignatureFile, "--insecure-ignore-tlog", checksumsFile)
	}
	verifyStatement := func(key string) error {
		return cosign("verify-blob-attestation", "--key", key, "--bundle", provenanceSignatureFile, "--type", provenanceType, "--insecure-ignore-tlog", krewFile)
	}
	require.NoError(t, verifyBlob(public))
	require.NoError(t, verifyStatement(public))
	assert.Error(t, verifyBlob(foreign))

	// The other way: bundles of these tests.
	key, own := newKey(t)
	damaged{t, dir}.sign(key)
	require.NoError(t, Verify(t.Context(), dir, own, io.Discard))
	require.NoError(t, verifyBlob(own))
	require.NoError(t, verifyStatement(own))
	assert.Error(t, verifyBlob(public))
	bundle := string(damaged{t, dir}.read(checksumsSignatureFile))
	digest, other := sha256.Sum256(damaged{t, dir}.read(checksumsFile)), sha256.Sum256(nil)
	damaged{t, dir}.edit(checksumsSignatureFile, base64.StdEncoding.EncodeToString(digest[:]), base64.StdEncoding.EncodeToString(other[:]))
	assert.Error(t, verifyBlob(own), "a bundle that names another digest")
	damaged{t, dir}.write(checksumsSignatureFile, []byte(bundle))
	require.NoError(t, verifyBlob(own))
	damaged{t, dir}.edit(checksumsFile, "  guard.yaml", "  other.yaml")
	assert.Error(t, verifyBlob(own))
}
