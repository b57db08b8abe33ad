package objects

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

func newTestDecoder(t *testing.T) *Decoder {
	t.Helper()
	d, err := NewDecoder(t.Context(), "/registry/", "")
	require.NoError(t, err)
	return d
}

// stored is an object as the API server writes it.
func stored(t *testing.T, d *Decoder, object runtime.Object) []byte {
	t.Helper()
	info, found := runtime.SerializerInfoForMediaType(d.codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	require.True(t, found)
	value, err := runtime.Encode(d.codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), object)
	require.NoError(t, err)
	return value
}

func TestDecode(t *testing.T) {
	t.Parallel()
	d := newTestDecoder(t)
	now := metav1.Unix(1700000000, 0)
	configMap := stored(t, d, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "settings", UID: "u", DeletionTimestamp: &now, Finalizers: []string{"f"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "Widget", Name: "w", UID: "v"}},
	}})
	o, err := d.Decode(t.Context(), "/registry/configmaps/shop/settings", configMap)
	require.NoError(t, err)
	require.NoError(t, o.KeyError())
	require.Equal(t, "ConfigMap shop/settings", o.String())
	require.EqualValues(t, "u", o.UID)
	require.True(t, now.Equal(o.Terminating))
	require.Equal(t, []string{"f"}, o.Finalizers)
	require.EqualValues(t, "v", o.Owners[0].UID)
	require.False(t, o.Custom)

	widget := []byte(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","namespace":"shop","uid":"v"},"spec":{}}`)
	o, err = d.Decode(t.Context(), "/registry/example.com/widgets/shop/w", widget)
	require.NoError(t, err)
	require.True(t, o.Custom)
	require.Equal(t, schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}, o.GroupVersionKind)

	o, err = d.Decode(t.Context(), "/registry/configmaps/shop/other", configMap)
	require.NoError(t, err)
	require.EqualError(t, o.KeyError(), "the key holds another object: ConfigMap shop/settings")

	for name, value := range map[string][]byte{
		"nothing":            nil,
		"text":               []byte("text"),
		"truncated protobuf": configMap[:len(configMap)/2],
		"truncated JSON":     widget[:len(widget)-1],
		"no kind":            []byte(`{"metadata":{"name":"w","uid":"v"}}`),
		"no UID":             []byte(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"}}`),
	} {
		_, err := d.Decode(t.Context(), "/registry/x", value)
		require.Error(t, err, name)
	}
	_, err = d.Decode(t.Context(), "/registry/secrets/shop/s", []byte("k8s:enc:aescbc:v1:key1:xxxx"))
	require.ErrorIs(t, err, ErrNoKey)
	require.ErrorContains(t, err, "aescbc:v1:key1")
}

// What is encoded is what the API server would store: a value of another kind of encryption would
// be as good as lost.
func TestEncode(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "encryption.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [pods]
  providers:
  - aesgcm: {keys: [{name: key1, secret: MDEyMzQ1Njc4OWFiY2RlZg==}]}
  - identity: {}
`), 0o600))
	for _, test := range []struct {
		config, key, encryption string
		object                  runtime.Object
	}{
		{config: "", key: "/registry/pods/shop/web", object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u"}}},
		{config: file, key: "/registry/pods/shop/web", encryption: "aesgcm:v1:key1", object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u"}}},
		{config: file, key: "/registry/persistentvolumes/pv", object: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "u"}}},
	} {
		d, err := NewDecoder(t.Context(), "/registry/", test.config)
		require.NoError(t, err)
		stored, err := d.Encode(t.Context(), test.key, corev1.SchemeGroupVersion, test.object)
		require.NoError(t, err)
		require.Equal(t, test.encryption, EncryptionKey(stored))
		if test.encryption == "" {
			require.Equal(t, "k8s\x00", string(stored[:4]))
		}
		o, err := d.Decode(t.Context(), test.key, stored)
		require.NoError(t, err)
		require.NoError(t, o.KeyError())
		require.Equal(t, "v1", o.Version)
		require.Equal(t, types.UID("u"), o.UID)
		if test.encryption != "" {
			_, err = d.Decode(t.Context(), "/registry/pods/shop/other", stored)
			require.ErrorIs(t, err, ErrNoKey, "the value belongs to its key")
		}
	}
}

func TestResourceOf(t *testing.T) {
	t.Parallel()
	d := newTestDecoder(t)
	for key, want := range map[string]string{
		"secrets/shop/password":           "secrets",
		"deployments/shop/web":            "deployments.apps",
		"events/shop/web":                 "events",
		"minions/node-1":                  "nodes",
		"services/specs/shop/web":         "services",
		"services/endpoints/shop/web":     "endpoints",
		"controllers/shop/web":            "replicationcontrollers",
		"ingress/shop/web":                "ingresses.networking.k8s.io",
		"example.com/widgets/shop/w":      "widgets.example.com",
		"apiextensions.k8s.io/x/y":        "x.apiextensions.k8s.io",
		"clusterroles/admin":              "clusterroles.rbac.authorization.k8s.io",
		"leases/kube-system/kube-manager": "leases.coordination.k8s.io",
	} {
		require.Equal(t, want, d.ResourceOf("/registry/"+key).String(), key)
	}
}

func TestEncryptionKeyOf(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"k8s\x00plain":                         "",
		"k8s:enc:secretbox:v1:2026:\x00\x01:a": "secretbox:v1:2026",
		"k8s:enc:kms:v2:plugin:\x00":           "kms:v2:plugin",
		"k8s:enc:broken":                       "an unknown provider",
	} {
		require.Equal(t, want, EncryptionKey([]byte(value)))
	}
}
