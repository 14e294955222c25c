package kube

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// parameterCodec encodes the options of requests.
var parameterCodec = sync.OnceValue(func() runtime.ParameterCodec { return runtime.NewParameterCodec(scheme()) })

// object is a pointer to a T, which has a name.
type object[T any] interface {
	*T
	runtime.Object
	metav1.Object
}

// list is a pointer to an L.
type list[L any] interface {
	*L
	runtime.Object
}

// resource implements Resource with the requests of the Kubernetes API.
type resource[T any, P object[T]] struct {
	client    rest.Interface
	name      string // in the plural, as in paths
	namespace string // "": the resource has no namespaces
}

// lister implements Lister.
type lister[T, L any, P object[T], Q list[L]] struct{ resource[T, P] }

func newResource[P object[T], T any](client rest.Interface, name, namespace string) Resource[P] {
	return resource[T, P]{client, name, namespace}
}

func newLister[P object[T], Q list[L], T, L any](client rest.Interface, name, namespace string) Lister[P, Q] {
	return lister[T, L, P, Q]{resource[T, P]{client, name, namespace}}
}

// to completes the path of a request.
func (r resource[T, P]) to(request *rest.Request) *rest.Request {
	return request.NamespaceIfScoped(r.namespace, r.namespace != "").Resource(r.name)
}

// object returns the object in the answer to a request.
func (resource[T, P]) object(ctx context.Context, request *rest.Request) (P, error) {
	result := P(new(T))
	err := request.Do(ctx).Into(result)
	return result, err
}

func (r resource[T, P]) Create(ctx context.Context, object P, o metav1.CreateOptions) (P, error) {
	return r.object(ctx, r.to(r.client.Post()).VersionedParams(&o, parameterCodec()).Body(object))
}

func (r resource[T, P]) Get(ctx context.Context, name string, o metav1.GetOptions) (P, error) {
	return r.object(ctx, r.to(r.client.Get()).Name(name).VersionedParams(&o, parameterCodec()))
}

func (r resource[T, P]) Update(ctx context.Context, object P, o metav1.UpdateOptions) (P, error) {
	return r.object(ctx, r.to(r.client.Put()).Name(object.GetName()).VersionedParams(&o, parameterCodec()).Body(object))
}

func (r resource[T, P]) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions,
	subresources ...string) (P, error) {
	return r.object(ctx, r.to(r.client.Patch(pt)).Name(name).SubResource(subresources...).
		VersionedParams(&o, parameterCodec()).Body(data))
}

func (r resource[T, P]) Delete(ctx context.Context, name string, o metav1.DeleteOptions) error {
	return r.to(r.client.Delete()).Name(name).Body(&o).Do(ctx).Error()
}

func (r resource[T, P]) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return r.many(&o).Watch(ctx)
}

func (l lister[T, L, P, Q]) List(ctx context.Context, o metav1.ListOptions) (Q, error) {
	result := Q(new(L))
	err := l.many(&o).Do(ctx).Into(result)
	return result, err
}

// many returns a request for several objects.
func (r resource[T, P]) many(o *metav1.ListOptions) *rest.Request {
	var timeout time.Duration // 0: none
	if o.TimeoutSeconds != nil {
		timeout = time.Duration(*o.TimeoutSeconds) * time.Second
	}
	return r.to(r.client.Get()).VersionedParams(o, parameterCodec()).Timeout(timeout)
}
