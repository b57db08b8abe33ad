package release

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newKey makes a pair of keys and the file of the public one, as cosign generate-key-pair does.
func newKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key, publicKeyFile(t, key.Public())
}

func publicKeyFile(t *testing.T, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "cosign.pub")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
	return file
}

func signatureOf(t *testing.T, key *ecdsa.PrivateKey, message []byte) string {
	t.Helper()
	hash := sha256.Sum256(message)
	signature, err := ecdsa.SignASN1(rand.Reader, key, hash[:])
	require.NoError(t, err)
	return base64.StdEncoding.EncodeToString(signature)
}

// sign writes the two bundles in the form of cosign 3 with a key and no services.
func (d damaged) sign(key *ecdsa.PrivateKey) {
	d.t.Helper()
	sums, statement := d.read(checksumsFile), d.read(provenanceFile)
	digest := sha256.Sum256(sums)
	d.write(checksumsSignatureFile, fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",`+
		`"verificationMaterial":{"publicKey":{"hint":"aGludA=="}},`+
		`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":%q},"signature":%q}}`,
		base64.StdEncoding.EncodeToString(digest[:]), signatureOf(d.t, key, sums)))
	const kind = "application/vnd.in-toto+json"
	d.write(provenanceSignatureFile, fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",`+
		`"verificationMaterial":{"publicKey":{"hint":"aGludA=="}},`+
		`"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}}`,
		base64.StdEncoding.EncodeToString(statement), kind,
		signatureOf(d.t, key, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(statement), statement))))
}

func TestSignatures(t *testing.T) {
	key, public := newKey(t)
	_, foreign := newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	whole := assembled(t, testRelease, testPrograms(t))
	damaged{t, whole}.sign(key)
	require.NoError(t, Verify(t.Context(), whole, public, io.Discard))
	require.NoError(t, Verify(t.Context(), whole, "", io.Discard), "signatures are no files of the release")

	for name, c := range map[string]struct {
		damage func(d damaged)
		key    string
		want   string
	}{
		"of another key":         {func(damaged) {}, foreign, "SHA256SUMS.sigstore.json: not a signature of SHA256SUMS by this key"},
		"of another kind of key": {func(damaged) {}, publicKeyFile(t, rsaKey.Public()), "not a key of ECDSA on P-256"},
		"no key":                 {func(d damaged) { d.write("key", []byte("key")) }, filepath.Join(whole, krewFile), "guard.yaml: not a public key in PEM"},
		"of other checksums":     {func(d damaged) { d.edit(checksumsFile, "  guard.yaml", "  other.yaml") }, public, "SHA256SUMS.sigstore.json: not a signature of SHA256SUMS by this key"},
		"of another statement":   {func(d damaged) { d.edit(provenanceFile, "https://ci.example", "https://ci.other"); d.list() }, public, "SHA256SUMS.sigstore.json: not a signature"},
		"with another digest": {func(d damaged) {
			digest := sha256.Sum256(d.read(checksumsFile))
			other := sha256.Sum256(nil)
			d.edit(checksumsSignatureFile, base64.StdEncoding.EncodeToString(digest[:]), base64.StdEncoding.EncodeToString(other[:]))
		}, public, "SHA256SUMS.sigstore.json: it names SHA-256 e3b0c44298fc1c14"},
		"missing":      {func(d damaged) { d.remove(checksumsSignatureFile) }, public, "SHA256SUMS.sigstore.json: it is missing"},
		"not a bundle": {func(d damaged) { d.write(checksumsSignatureFile, []byte("MEUCIQ==")) }, public, "SHA256SUMS.sigstore.json: "},
		"of a statement, not of a file": {func(d damaged) { d.write(checksumsSignatureFile, d.read(provenanceSignatureFile)) }, public,
			"SHA256SUMS.sigstore.json: no signature of a file"},
		"of a file, not of a statement": {func(d damaged) { d.write(provenanceSignatureFile, d.read(checksumsSignatureFile)) }, public,
			"provenance.sigstore.json: no signed statement"},
		"an envelope with another statement": {func(d damaged) {
			d.edit(provenanceFile, "https://ci.example", "https://ci.other")
			envelope := d.read(provenanceSignatureFile)
			d.list()
			d.sign(key)
			d.write(provenanceSignatureFile, envelope)
		}, public, "provenance.sigstore.json: it is of another statement than provenance.json"},
		"an envelope by another key": {func(d damaged) {
			other, _ := newKey(d.t)
			sums := d.read(checksumsSignatureFile)
			d.sign(other)
			d.write(checksumsSignatureFile, sums)
		}, public, "provenance.sigstore.json: not a signature of provenance.json by this key"},
	} {
		t.Run(name, func(t *testing.T) {
			d := damaged{t, copyFolder(t, whole)}
			c.damage(d)
			assert.ErrorContains(t, Verify(t.Context(), d.dir, c.key, io.Discard), c.want)
		})
	}
}

// docs/releases.md has this for those without cosign: the signature in the bundle is a plain one.
func TestSignaturesWithOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	run := func(args ...string) error {
		cmd := exec.Command(openssl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %s", args[0], out)
		return err
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, checksumsFile), []byte("sums\n"), 0o644))
	require.NoError(t, run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"))
	require.NoError(t, run("ec", "-in", "key.pem", "-pubout", "-out", "cosign.pub"))
	require.NoError(t, run("dgst", "-sha256", "-sign", "key.pem", "-out", "signature", checksumsFile))
	signature, err := os.ReadFile(filepath.Join(dir, "signature"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, checksumsSignatureFile), fmt.Appendf(nil,
		`{"messageSignature":{"signature":%q}}`, base64.StdEncoding.EncodeToString(signature)), 0o644))

	key, err := readKey(filepath.Join(dir, "cosign.pub"))
	require.NoError(t, err)
	require.NoError(t, checkSignature(dir, checksumsFile, checksumsSignatureFile, key, messageSignature))
	// And the other way.
	require.NoError(t, run("dgst", "-sha256", "-verify", "cosign.pub", "-signature", "signature", checksumsFile))
}
