package release

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	bundlev1 "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// Signatures are Sigstore bundles, as cosign writes them with a key of its own: ECDSA on P-256
// over SHA-256. cosign itself is not linked, because it brings the clients of four clouds.

// statementType is the payload type of a signed in-toto statement.
const statementType = "application/vnd.in-toto+json"

// readKey reads a public key, as cosign generate-key-pair writes it to cosign.pub.
func readKey(file string) (*ecdsa.PublicKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s: not a public key in PEM", file)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s: not a key of ECDSA on P-256, which cosign makes", file)
	}
	return key, nil
}

// checkSignatures verifies the signature of SHA256SUMS, which every other file hangs on, and
// that of the provenance statement, if it is there.
func checkSignatures(dir, keyFile string) error {
	key, err := readKey(keyFile)
	if err != nil {
		return err
	}
	err = checkSignature(dir, checksumsFile, checksumsSignatureFile, key, messageSignature)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: it is missing, so nothing shows who made the folder", checksumsSignatureFile)
	}
	if err != nil {
		return err
	}
	err = checkSignature(dir, provenanceFile, provenanceSignatureFile, key, envelopeSignature)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// signed returns the signature in a bundle, and the bytes that it is of.
type signed func(b *bundlev1.Bundle, content []byte) (signature, message []byte, err error)

func checkSignature(dir, file, bundleFile string, key *ecdsa.PublicKey, of signed) error {
	data, err := os.ReadFile(filepath.Join(dir, bundleFile))
	if err != nil {
		return err
	}
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	b := &bundlev1.Bundle{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, b); err != nil {
		return fmt.Errorf("%s: %w", bundleFile, err)
	}
	signature, message, err := of(b, content)
	if err != nil {
		return fmt.Errorf("%s: %w", bundleFile, err)
	}
	hash := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(key, hash[:], signature) {
		return fmt.Errorf("%s: not a signature of %s by this key", bundleFile, file)
	}
	// cosign refuses such a bundle, too.
	if digest := b.GetMessageSignature().GetMessageDigest().GetDigest(); digest != nil && !bytes.Equal(digest, hash[:]) {
		return fmt.Errorf("%s: it names SHA-256 %x, and %s has %x", bundleFile, digest, file, hash)
	}
	return nil
}

// messageSignature is of a file, by cosign sign-blob.
func messageSignature(b *bundlev1.Bundle, content []byte) (signature, message []byte, err error) {
	s := b.GetMessageSignature()
	if s == nil {
		return nil, nil, errors.New("no signature of a file")
	}
	return s.Signature, content, nil
}

// envelopeSignature is of a statement in an envelope (DSSE), by cosign attest-blob.
func envelopeSignature(b *bundlev1.Bundle, content []byte) (signature, message []byte, err error) {
	e := b.GetDsseEnvelope()
	switch {
	case e == nil || len(e.Signatures) != 1:
		return nil, nil, errors.New("no signed statement")
	case e.PayloadType != statementType:
		return nil, nil, fmt.Errorf("the payload is of type %s, and should be of %s", e.PayloadType, statementType)
	case !bytes.Equal(e.Payload, content):
		return nil, nil, fmt.Errorf("it is of another statement than %s", provenanceFile)
	}
	return e.Signatures[0].Sig, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(e.Payload), e.Payload), nil
}
