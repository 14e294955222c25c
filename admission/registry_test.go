package admission_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/admission"
	"trow/registry/server"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// The registry of the tests: repo:tag -> what the manifest consists of. Equal content is an equal manifest.
var held = map[string]string{
	"k8s-php:1.0.0":  "php one",
	"nginx:1.21.0":   "nginx",
	"app:1":          "app one",
	"app:stable":     "app one", // the same manifest as app:1
	"app:2":          "app two",
	"team/app:1":     "team",
	"team-other/x:1": "other",
}

func digestOf(content string) string { return digest.FromString(content).String() }

// registry is an Index over memory, whose look-ups a test can make fail.
type registry struct {
	*storage.Index
	resolve func(repo, ref string) error // if set, may fail or panic before every look-up
	tags    func() error
}

func (r *registry) Resolve(ctx context.Context, repo, ref string) (storage.Descriptor, bool, error) {
	if r.resolve != nil {
		if err := r.resolve(repo, ref); err != nil {
			return storage.Descriptor{}, false, err
		}
	}
	return r.Index.Resolve(ctx, repo, ref)
}

func (r *registry) Tags(ctx context.Context, repo, after string, n int) ([]string, bool, error) {
	if r.tags != nil {
		if err := r.tags(); err != nil {
			return nil, false, err
		}
	}
	return r.Index.Tags(ctx, repo, after, n)
}

func newRegistry(tb testing.TB, images map[string]string) *registry {
	tb.Helper()
	x := storagetest.OpenIndex(tb, memory.NewJournal())
	for image, content := range images {
		repo, tag, _ := strings.Cut(image, ":")
		d := digest.FromString(content)
		err := x.Update(tb.Context(), repo, func(tx *storage.Tx) error {
			m := storage.Manifest{Digest: d, MediaType: "application/vnd.oci.image.manifest.v1+json",
				Size: int64(len(content))}
			if err := tx.PutManifest(m); err != nil {
				return err
			}
			return tx.SetTag(tag, d)
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	return &registry{Index: x}
}

const host = "trow.kube-public:31000"

// localNames are the names of the tests' registry.
var localNames = []string{host, "trow:31000"}

func newPolicy(tb testing.TB, o admission.PolicyOptions) *admission.Policy {
	tb.Helper()
	if o.Names == nil {
		o.Names = localNames
	}
	p, err := admission.NewPolicy(o)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// newHook returns a webhook that reads the bodies of requests as the program does.
func newHook(o admission.Options) *admission.Webhook {
	o.Bodies = server.NewBodies(1 << 30)
	return admission.New(o)
}

// newWebhook returns a webhook over the tests' registry, and where its decisions go.
func newWebhook(tb testing.TB, o admission.PolicyOptions) (*admission.Webhook, *[]admission.Decision) {
	tb.Helper()
	var seen []admission.Decision
	return newHook(admission.Options{
		Images:  newRegistry(tb, held),
		Policy:  newPolicy(tb, o),
		Observe: func(_ context.Context, d admission.Decision) { seen = append(seen, d) },
	}), &seen
}

type object = map[string]any

// podOf is a pod with a container for each image.
func podOf(images ...string) object {
	var containers []any
	for _, image := range images {
		containers = append(containers, object{"name": "c", "image": image})
	}
	return object{"kind": "Pod", "metadata": object{"name": "p"}, "spec": object{"containers": containers}}
}

// reviewOf is an AdmissionReview; change sets members of the request.
func reviewOf(tb testing.TB, group, kind string, o object, change object) string {
	tb.Helper()
	request := object{
		"uid": "u-1", "kind": object{"group": group, "version": "v1", "kind": kind}, "namespace": "default",
		"operation": "CREATE", "userInfo": object{"username": "alice"}, "object": o,
	}
	for name, value := range change {
		request[name] = value
	}
	body, err := json.Marshal(object{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
		"request": request})
	if err != nil {
		tb.Fatal(err)
	}
	return string(body)
}
