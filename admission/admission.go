// Package admission decides which images may run in the cluster: an AdmissionReview goes in, an
// AdmissionReview comes out.
//
// # Words
//
//   - review: an AdmissionReview of admission.k8s.io, v1 or v1beta1. It asks about one object.
//   - object: a pod, or a workload whose template pods are made from.
//   - image: a string of an object that names what a runtime is to pull, as it is written there.
//   - [Reference]: what an image means, in canonical form. No rule looks at the form as written.
//   - local: of this registry, by the host that the image names. Everything else is remote.
//   - [Policy]: the rules. A verdict is what it says of one image.
//   - sentence: why an image is denied, for people. A hint is what to do about it; it goes out as a warning.
//
// # Invariants
//
//  1. A local image runs only if the registry holds it, or a rule allows it by name.
//  2. What cannot be understood is denied (an image) or is an error (a review), never allowed.
//  3. What cannot be known is an error, never a denial: the API server's failurePolicy decides then.
//  4. An image that an object had before is not judged again, so that an object can always be updated and
//     deleted, whatever the rules have become since.
//  5. The answer is bounded, whatever the object: in the number of sentences, causes, warnings and bytes.
//
// # What it does not do
//
// It changes no object and asks no other registry. It checks names, not origins: a node may be configured to
// pull docker.io from a mirror, or have an image in its cache. It does not log.
// Who may call it is decided before it is asked, by [Callers], if at all.
package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxBody bounds a review, in bytes. The API server takes requests up to 3 MiB; on UPDATE a review has
	// the object twice, and both are wrapped.
	maxBody = 7 << 20

	// maxKept bounds the buffers that are kept for later bodies, in bytes. Nearly all reviews are smaller.
	maxKept = 256 << 10

	// maxLarge bounds the reviews larger than maxKept that are under way. Each may take 20 times its size when it is made
	// of empty things; those that the API server sends of real pods are a tenth of maxKept.
	maxLarge = 4

	// maxWait bounds how long a large review waits for its turn. The API server waits 10 s for an answer unless told
	// otherwise, and when it goes, the request's context ends.
	maxWait = 10 * time.Second
)

// Options configures a Webhook.
type Options struct {
	Images Images  // required
	Policy *Policy // required

	// Audit, if set, is asked for each object whether it is to be allowed in any case: with warnings, and with
	// what it would be denied for in the Decision.
	Audit func() bool

	// Observe, if set, is called once for every review that was judged or that the webhook failed to judge,
	// before the answer goes out, also concurrently. It is not told of requests that are refused as malformed.
	Observe func(context.Context, Decision)
}

// Decision is what became of a review.
type Decision struct {
	UID         string
	Namespace   string
	Name        string // of the object; with generateName that prefix
	Kind        string
	Operation   string // CREATE, UPDATE, DELETE, CONNECT
	SubResource string
	User        string
	DryRun      bool

	Allowed bool
	Skipped string   // why no image was judged, "" if the images were
	Denied  []string // the sentences, as told. On an object that was allowed they are warnings
	Images  []string // the images judged, each with its digest if the registry holds it; bounded

	// Verdicts are the verdicts on the images, at most 256. They are shared: do not change them.
	Verdicts []Verdict

	// Err is why the call failed: HTTP status 500 and no verdict. Of a panic it has the stack.
	Err error
}

// Webhook answers AdmissionReviews. It is safe for concurrent use.
type Webhook struct {
	images  Images
	policy  *Policy
	audit   func() bool
	observe func(context.Context, Decision)
	large   chan struct{} // a place for each large review under way
}

// New returns a webhook.
func New(o Options) *Webhook {
	w := &Webhook{images: o.Images, policy: o.Policy, audit: o.Audit, observe: o.Observe,
		large: make(chan struct{}, maxLarge)}
	if w.audit == nil {
		w.audit = func() bool { return false }
	}
	if w.observe == nil {
		w.observe = func(context.Context, Decision) {}
	}
	return w
}

// httpError is an answer that is not a review. To the API server all of them are failed calls.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

func malformed(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// ServeHTTP answers an AdmissionReview that is POSTed as JSON. A verdict is status 200, whether it allows or
// denies. Other statuses: 400 for what is not a review, 405, 413 above 7 MiB, 415, 500 when the registry cannot
// tell, and 503 when too many large reviews are under way; their bodies are a line of text, with the review's uid as soon as it is known.
func (w *Webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	var d Decision
	defer func() {
		p := recover()
		switch {
		case p == nil:
		case p == http.ErrAbortHandler:
			panic(p)
		default:
			err := fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			fail(rw, d.UID, err)
			w.report(r.Context(), d, err)
		}
	}()
	answer, err := w.serve(rw, r, &d)
	w.report(r.Context(), d, err)
	if err != nil {
		fail(rw, d.UID, err)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	rw.Write(answer)
}

// serve reads the request, judges, and returns the body of the answer.
func (w *Webhook) serve(rw http.ResponseWriter, r *http.Request, d *Decision) ([]byte, error) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		return nil, &httpError{http.StatusMethodNotAllowed, "an AdmissionReview is sent with POST"}
	}
	if !isJSON(r.Header.Get("Content-Type")) {
		return nil, &httpError{http.StatusUnsupportedMediaType, "an AdmissionReview is of type application/json"}
	}
	if r.ContentLength < 0 || r.ContentLength > maxKept {
		turn, cancel := context.WithTimeout(r.Context(), maxWait)
		defer cancel()
		select {
		case w.large <- struct{}{}:
			defer func() { <-w.large }()
		case <-turn.Done():
			return nil, &httpError{http.StatusServiceUnavailable, "too many large AdmissionReviews are under way; try again"}
		}
	}
	review, err := readReview(rw, r)
	if err != nil {
		return nil, err
	}
	response, err := w.review(r.Context(), review.Request, d)
	if err != nil {
		return nil, err
	}
	return json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: review.APIVersion, Kind: review.Kind},
		Response: response,
	})
}

// fail answers with what is not a review. What went wrong inside is for Observe alone.
func fail(rw http.ResponseWriter, uid string, err error) {
	failure, ok := errors.AsType[*httpError](err)
	if !ok {
		failure = &httpError{http.StatusInternalServerError, "the registry cannot tell; its log says why"}
	}
	text := failure.text
	if uid != "" {
		text += " (review " + uid + ")"
	}
	http.Error(rw, text, failure.status)
}

// report tells Observe what became of a review, unless it was malformed.
func (w *Webhook) report(ctx context.Context, d Decision, err error) {
	if _, ok := errors.AsType[*httpError](err); ok {
		return
	}
	if err != nil {
		d.Allowed, d.Err = false, err
	}
	w.observe(ctx, d)
}

// Review decides on one request without HTTP, and calls Observe as ServeHTTP does. Errors: what is malformed
// about the request, or what kept the registry from answering.
func (w *Webhook) Review(ctx context.Context, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	q, err := requestOf(r)
	if err != nil {
		return nil, err
	}
	var d Decision
	response, err := w.review(ctx, q, &d)
	w.report(ctx, d, err)
	return response, err
}

// isJSON tells whether a content type is JSON, parameters aside.
func isJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && mediaType == "application/json"
}

// bodies keeps the buffers that reviews are read into.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// readReview reads the body and decodes it. What it returns shares no memory with the body.
func readReview(rw http.ResponseWriter, r *http.Request) (*review, error) {
	tooLarge := &httpError{http.StatusRequestEntityTooLarge, "an AdmissionReview has at most 7 MiB"}
	if r.ContentLength > maxBody {
		return nil, tooLarge
	}
	buf := bodies.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= maxKept {
			buf.Reset()
			bodies.Put(buf)
		}
	}()
	if r.ContentLength > maxKept { // of which there are few at a time
		buf.Grow(int(r.ContentLength) + bytes.MinRead) // once, not by doubling
	}
	if _, err := buf.ReadFrom(http.MaxBytesReader(rw, r.Body, maxBody)); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, malformed("the body ends early")
		}
		return nil, malformed("the body cannot be read")
	}
	return decodeReview(buf.Bytes())
}

// Loading answers in place of the webhook until the index is loaded. Until then it is not known what the registry
// holds, so nothing is denied: a failed call leaves the decision to the failurePolicy of the webhook.
var Loading http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "the registry is loading its index; retry in a moment", http.StatusServiceUnavailable)
})
