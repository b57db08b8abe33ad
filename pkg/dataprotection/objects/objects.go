// Package objects decodes what the API server keeps in etcd: which object a key holds, by the
// types and codecs of Kubernetes, through its encryption at rest, and encodes objects of its own
// kinds alike. Nothing here writes.
package objects

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// Object is what a key holds.
type Object struct {
	Key string
	schema.GroupVersionKind
	Namespace, Name string
	UID             types.UID
	// Terminating: the object has a deletion timestamp.
	Terminating *metav1.Time
	Finalizers  []string
	Owners      []metav1.OwnerReference
	// Custom: the kind comes from a CustomResourceDefinition.
	Custom bool
	// Typed is the whole object, of a kind of the API server's own.
	Typed runtime.Object
	// Encrypted: the value is encrypted at rest.
	Encrypted bool
}

// String is how messages name an object: kind, namespace, name.
func (o *Object) String() string {
	name := o.Name
	if o.Namespace != "" {
		name = o.Namespace + "/" + name
	}
	return o.Kind + " " + name
}

// KeyError says that a key does not name the object that it holds.
func (o *Object) KeyError() error {
	if o.Name == "" {
		return nil // lists of addresses and the like: they have no name
	}
	suffix := "/" + o.Name
	if o.Namespace != "" {
		suffix = "/" + o.Namespace + suffix
	}
	if !strings.HasSuffix(o.Key, suffix) {
		return fmt.Errorf("the key holds another object: %s", o)
	}
	return nil
}

// ErrNoKey says that a value is encrypted and no key of the configuration decrypts it.
var ErrNoKey = errors.New("encrypted at rest, and no key decrypts it")

// protobufPrefix is what all built-in kinds start with in etcd, but those that the API server
// keeps as JSON (CustomResourceDefinition, APIService).
var protobufPrefix = []byte("k8s\x00")

// encryptionPrefix starts every encrypted value, as in k8s:enc:aescbc:v1:NAME:
var encryptionPrefix = []byte("k8s:enc:")

// Decoder decodes values.
type Decoder struct {
	prefix       string
	codecs       serializer.CodecFactory
	scheme       *runtime.Scheme
	groups       map[string]string
	transformers encryptionconfig.StaticTransformers
}

// NewDecoder returns a decoder of keys with the prefix, as "/registry/". encryptionConfig is the
// file of --encryption-provider-config, or empty. ctx ends connections to key management services.
func NewDecoder(ctx context.Context, prefix, encryptionConfig string) (*Decoder, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientscheme.AddToScheme, apiextensionsv1.AddToScheme, apiextensionsv1beta1.AddToScheme, apiregistrationv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	d := &Decoder{prefix: prefix, scheme: scheme, codecs: serializer.NewCodecFactory(scheme), groups: map[string]string{}}
	for gvk := range scheme.AllKnownTypes() {
		plural, _ := meta.UnsafeGuessKindToResource(gvk)
		// Of resources in several groups (events, ingresses), encryption is configured for
		// the group that the API server stores them in: the core group has events, and the
		// extensions group has nothing any more.
		if group, known := d.groups[plural.Resource]; gvk.Group != "extensions" && (!known || group != "") {
			d.groups[plural.Resource] = gvk.Group
		}
	}
	if encryptionConfig != "" {
		config, err := encryptionconfig.LoadEncryptionConfig(ctx, encryptionConfig, false, "guard-etcd")
		if err != nil {
			return nil, fmt.Errorf("--encryption-provider-config=%s: %w", encryptionConfig, err)
		}
		d.transformers = config.Transformers
	}
	return d, nil
}

// Known reports whether a kind is one of the API server's own.
func (d *Decoder) Known(gvk schema.GroupVersionKind) bool { return d.scheme.Recognizes(gvk) }

// Decode returns the object that a key holds. Errors that wrap ErrNoKey are about the encryption.
// That key and object agree is another question: Object.KeyError.
func (d *Decoder) Decode(ctx context.Context, key string, stored []byte) (*Object, error) {
	plain, encrypted, err := d.decrypt(ctx, key, stored)
	if err != nil {
		return nil, err
	}
	o, err := d.decode(plain)
	if err != nil {
		return nil, err
	}
	o.Key, o.Encrypted = key, encrypted
	return o, nil
}

// Encode returns what the API server would store under a key for an object of one of its own
// kinds that it stores as protobuf: in that version, and encrypted as the configuration says for
// its resource. Decode reads it again.
func (d *Decoder) Encode(ctx context.Context, key string, version schema.GroupVersion, object runtime.Object) ([]byte, error) {
	info, found := runtime.SerializerInfoForMediaType(d.codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !found {
		return nil, fmt.Errorf("no serializer for %s", runtime.ContentTypeProtobuf)
	}
	plain, err := runtime.Encode(d.codecs.EncoderForVersion(info.Serializer, version), object)
	if err != nil {
		return nil, err
	}
	return d.transformers.TransformerForResource(d.ResourceOf(key)).TransformToStorage(ctx, plain, value.DefaultContext(key))
}

func (d *Decoder) decrypt(ctx context.Context, key string, stored []byte) (plain []byte, encrypted bool, err error) {
	if !bytes.HasPrefix(stored, encryptionPrefix) {
		return stored, false, nil
	}
	name := EncryptionKey(stored)
	if d.transformers == nil {
		return nil, true, fmt.Errorf("%w: it is written with %s, and no encryption configuration is given (--encryption-provider-config)", ErrNoKey, name)
	}
	plain, _, err = d.transformers.TransformerForResource(d.ResourceOf(key)).TransformFromStorage(ctx, stored, value.DefaultContext(key))
	if err != nil {
		return nil, true, fmt.Errorf("%w: it is written with %s: %w", ErrNoKey, name, err)
	}
	return plain, true, nil
}

// EncryptionKey returns how a value is encrypted, as "aescbc:v1:key1", or "" for a plain one.
func EncryptionKey(stored []byte) string {
	rest, encrypted := bytes.CutPrefix(stored, encryptionPrefix)
	if !encrypted {
		return ""
	}
	// A provider, its version and the name of the key, each before a colon.
	parts := bytes.SplitN(rest[:min(len(rest), 200)], []byte(":"), 4)
	if len(parts) < 4 {
		return "an unknown provider"
	}
	return string(bytes.Join(parts[:3], []byte(":")))
}

func (d *Decoder) decode(plain []byte) (*Object, error) {
	switch {
	case bytes.HasPrefix(plain, protobufPrefix):
		return d.decodeTyped(runtime.ContentTypeProtobuf, plain)
	case bytes.HasPrefix(plain, []byte("{")):
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(plain, &o); err != nil {
			return nil, err
		}
		gvk := o.GroupVersionKind()
		if gvk.Kind == "" || gvk.Version == "" {
			return nil, errors.New("it has no kind or no apiVersion")
		}
		if d.Known(gvk) {
			return d.decodeTyped(runtime.ContentTypeJSON, plain)
		}
		if o.Name == "" || o.UID == "" {
			return nil, errors.New("it has no name or no UID")
		}
		return newObject(gvk, &o.ObjectMeta, nil), nil
	case len(plain) == 0:
		return nil, errors.New("it is empty")
	}
	return nil, fmt.Errorf("it is neither protobuf nor JSON: it starts with %q", plain[:min(len(plain), 8)])
}

func (d *Decoder) decodeTyped(contentType string, plain []byte) (*Object, error) {
	info, found := runtime.SerializerInfoForMediaType(d.codecs.SupportedMediaTypes(), contentType)
	if !found {
		return nil, fmt.Errorf("no serializer for %s", contentType)
	}
	typed, gvk, err := info.Serializer.Decode(plain, nil, nil)
	if err != nil {
		return nil, err
	}
	accessor, err := meta.Accessor(typed)
	if err != nil {
		return nil, err
	}
	return newObject(*gvk, accessor, typed), nil
}

func newObject(gvk schema.GroupVersionKind, m metav1.Object, typed runtime.Object) *Object {
	return &Object{
		GroupVersionKind: gvk, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUID(),
		Terminating: m.GetDeletionTimestamp(), Finalizers: m.GetFinalizers(), Owners: m.GetOwnerReferences(),
		Custom: typed == nil, Typed: typed,
	}
}

// resourcesByFolder are the folders of etcd that are not named as their resource
// (kubernetes/pkg/kubeapiserver/default_storage_factory_builder.go: SpecialDefaultResourcePrefixes).
var resourcesByFolder = map[string]schema.GroupResource{
	"minions":            {Resource: "nodes"},
	"services/specs":     {Resource: "services"},
	"services/endpoints": {Resource: "endpoints"},
	"controllers":        {Resource: "replicationcontrollers"},
	"ingress":            {Group: "networking.k8s.io", Resource: "ingresses"},
}

// ResourceOf returns the resource whose folder a key is in: <prefix>pods/… or
// <prefix><group>/<resource>/… .
func (d *Decoder) ResourceOf(key string) schema.GroupResource {
	folders := strings.SplitN(strings.TrimPrefix(key, d.prefix), "/", 3)
	if len(folders) > 1 {
		if resource, special := resourcesByFolder[folders[0]+"/"+folders[1]]; special {
			return resource
		}
		if strings.Contains(folders[0], ".") {
			return schema.GroupResource{Group: folders[0], Resource: folders[1]}
		}
	}
	if resource, special := resourcesByFolder[folders[0]]; special {
		return resource
	}
	return schema.GroupResource{Group: d.groups[folders[0]], Resource: folders[0]}
}
