// Package admission decides which images may run in the cluster: an AdmissionReview goes in, an
// AdmissionReview comes out.
//
// # Words
//
//   - review: an AdmissionReview of admission.k8s.io, v1 or v1beta1. It asks about one object.
//   - object: a pod, or a workload with a template that pods are made from.
//   - image: a string in an object that names what a container runtime shall pull, as written.
//   - [Reference]: what an image means, in canonical form. Rules see this form only.
//   - local: of this registry, by the host that the image names. Every other image is remote.
//   - [Policy]: the rules. [Policy.Decide] returns a [Verdict] on one image.
//   - sentence: why an image is denied, for people. A hint says what to do about it, and becomes a warning.
//   - [Decision]: what became of a review. It carries the verdicts on all its images.
//
// # Invariants
//
//  1. A local image runs only if the registry holds it, or a rule allows it by name. One below f/ is an image of
//     another registry, and is judged as one, under whichever of its names it is written.
//  2. An image that cannot be parsed is denied, and a review that cannot be decoded is an error; neither is allowed.
//  3. When the registry cannot be asked, the answer is an error, not a denial: then the failurePolicy of the webhook
//     decides.
//  4. Images that an object had before an update are not checked again, so that an object can always be updated and
//     deleted, however the rules have changed.
//  5. Every answer is bounded in the number of sentences, causes, warnings and bytes, whatever the object.
//  6. A verdict on an image of another registry comes from memory. The fetches that it starts do not change it, and it
//     does not wait for them.
//
// # What it does not do
//
// It changes no object and asks no other registry: with may-run: fetch the registry asks it, after the verdict. It
// checks names, not origins: a node may be configured to pull docker.io from a mirror, or have an image in its cache.
// The webhook answers every caller; [Callers], if configured, refuses other clients than the API server before it.
package admission

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"

	"github.com/rs/zerolog"
	admissionv1 "k8s.io/api/admission/v1"

	"trow/storage"
)

// Options configures a Webhook.
type Options struct {
	Images Images  // required
	Policy *Policy // required

	// Hints says who gets hints that name tags and digests. nil: every caller.
	Hints *Hints

	// Bodies bounds the memory of reviews that come by HTTP. ServeHTTP needs it, and Review does not.
	Bodies Bodies

	// Audit, if set, is called for each object. If it returns true, the object is allowed in any case: with warnings,
	// and with the reasons to deny it in the Decision.
	Audit func() bool

	// Observe, if set, is called once for every review that the webhook answered or failed to answer, before the answer
	// is sent, possibly concurrently. It is not called for requests that are refused as malformed.
	Observe func(context.Context, Decision)

	// Probe, if set, gets the value of a probe (annotation trow.io/probe of a ConfigMap that is updated), and returns
	// the sentence to deny it with; empty if the value is not of this process. It must compare in constant time.
	Probe func(value string) string

	// Metrics, if set, counts the reviews.
	Metrics *Metrics

	// Log gets a line for each review: an error for those that failed, others at debug.
	Log zerolog.Logger
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
	Skipped string   // why the images were not checked; empty if they were
	Denied  []string // the sentences of the answer; on an object that was allowed they are warnings
	Images  []string // the images that were checked, each with its digest if the registry holds it; bounded

	// Fetching are the images that are fetched ahead of their pull, because of this review or an earlier one; bounded.
	Fetching []string

	// Verdicts are the verdicts on the images, at most 256. They are shared: do not change them.
	Verdicts []Verdict

	// Err is why the call failed, with HTTP status 500 and no verdict. For a panic it contains the stack.
	Err error
}

// Webhook answers AdmissionReviews. It is safe for concurrent use.
type Webhook struct {
	images  Images
	policy  *Policy
	audit   func() bool
	probe   func(string) string
	observe func(context.Context, Decision)
	metrics *Metrics
	log     zerolog.Logger
	bodies  Bodies
	hints   *Hints
	ahead   *ahead
}

// New returns a webhook.
func New(o Options) *Webhook {
	w := &Webhook{
		images: o.Images, policy: o.Policy, audit: o.Audit, observe: o.Observe, metrics: o.Metrics, log: o.Log,
		bodies: o.Bodies, hints: o.Hints, probe: o.Probe, ahead: newAhead(&o),
	}
	if w.audit == nil {
		w.audit = func() bool { return false }
	}
	if w.observe == nil {
		w.observe = func(context.Context, Decision) {}
	}
	return w
}

// httpError is an answer that is not a review. For the API server each of them is a failed call.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

func malformed(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// ServeHTTP answers an AdmissionReview that is POSTed as JSON. A verdict has status 200, whether it allows or denies.
// Other statuses: 400 for a body that is not a review, 405, 413 above 7 MiB, 415, 500 when the registry cannot be
// asked, and 503 when there is no memory for the review. Their bodies are a line of text, with the uid of the review
// if it is known.
func (w *Webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	var d Decision
	defer func() {
		p := recover()
		switch {
		case p == nil:
		case p == http.ErrAbortHandler: // net/http's own, which cuts the connection
			panic(p)
		default: // answer, so that the API server need not wait for its timeout, and report it as a failure
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

// serve reads and reviews the request, and returns the body of the answer.
func (w *Webhook) serve(rw http.ResponseWriter, r *http.Request, d *Decision) ([]byte, error) {
	if r.Method != http.MethodPost {
		rw.Header().Set("Allow", http.MethodPost)
		return nil, &httpError{http.StatusMethodNotAllowed, "method not allowed; send an AdmissionReview with POST"}
	}
	if !isJSON(r.Header.Get("Content-Type")) {
		return nil, &httpError{http.StatusUnsupportedMediaType,
			"unsupported Content-Type; send an AdmissionReview as application/json"}
	}
	review, release, err := w.readReview(rw, r)
	if err != nil {
		return nil, err
	}
	defer release()
	response, err := w.review(r.Context(), r, review.Request, d)
	if err != nil {
		return nil, err
	}
	return encode(review, response)
}

// fail answers with an error. Its text is for the client; a cause inside the registry is only passed to Observe.
func fail(rw http.ResponseWriter, uid string, err error) {
	failure, ok := errors.AsType[*httpError](err)
	switch {
	case ok:
	// It is not sure that the image is not here. It is no 503: of that, the API server shows a text of its own, and
	// with Retry-After it asks until its timeout is over.
	case errors.Is(err, storage.ErrUnavailable):
		failure = &httpError{http.StatusInternalServerError,
			"the registry cannot decide right now, because its storage does not answer; retry in a moment"}
	default:
		failure = &httpError{http.StatusInternalServerError, "the registry cannot decide right now; see its log"}
	}
	text := failure.text
	if uid != "" {
		text += " (review " + uid + ")"
	}
	if failure.status == http.StatusServiceUnavailable { // the API server then asks again, within its timeout
		rw.Header().Set("Retry-After", "1")
	}
	http.Error(rw, text, failure.status)
}

// report calls Observe, unless the request was malformed.
func (w *Webhook) report(ctx context.Context, d Decision, err error) {
	if _, ok := errors.AsType[*httpError](err); ok {
		return
	}
	if err != nil {
		d.Allowed, d.Err = false, err
	}
	w.observe(ctx, d)
	if w.metrics != nil {
		w.metrics.Observe(d)
	}
	d.log(w.log)
}

// Review decides on one request without HTTP, and calls Observe as ServeHTTP does. Errors: the request is malformed, or
// the registry could not be asked.
func (w *Webhook) Review(ctx context.Context, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	q, err := requestOf(r)
	if err != nil {
		return nil, err
	}
	var d Decision
	response, err := w.review(ctx, nil, q, &d)
	w.report(ctx, d, err)
	return response, err
}

// Malformed reports whether an error of Review is about the request, which cannot be read.
func Malformed(err error) bool {
	_, ok := errors.AsType[*httpError](err)
	return ok
}

// isJSON reports whether a content type is JSON, with any parameters.
func isJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	return err == nil && mediaType == "application/json"
}

// Loading answers in place of the webhook until the index is loaded. Until then it is not known what the registry
// holds, so nothing is denied: a failed call leaves the decision to the failurePolicy of the webhook.
var Loading http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "the registry is loading its index; retry in a moment", http.StatusServiceUnavailable)
})
