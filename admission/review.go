package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// maxImages bounds the different images of an object. No pod that runs has nearly as many; an object with more is
	// denied. The longest possible ones take the parser about 0.1 s.
	maxImages = 256

	// maxSentences bounds the sentences, the causes and the images with hints of one answer.
	maxSentences = 20

	// maxAudit bounds an audit annotation that lists images, in bytes.
	maxAudit = 4096
)

// findings is what was found out about the images of an object.
type findings struct {
	verdicts  []Verdict // one per image, in the order of the object
	causes    []metav1.StatusCause
	sentences []string // at most maxSentences, and a last one that counts the others
	omitted   int      // images denied whose sentence is not among them
	digests   []string // see [Decision.Images]
}

// review decides on a request, and fills in d as far as it gets. call is the HTTP request; it may be nil.
// Errors: *httpError for a malformed request, or why the registry could not be asked.
func (w *Webhook) review(ctx context.Context, call *http.Request, q *request, d *Decision) (
	*admissionv1.AdmissionResponse, error) {
	*d = q.decision()
	if denial := w.denyProbe(q, d); denial != nil {
		return denial, nil
	}
	k, checked := kinds[q.Kind]
	d.Skipped = "kind without images"
	if checked {
		d.Skipped = q.exempt(k)
	}
	if d.Skipped != "" {
		d.Allowed = true
		return respond(d, nil, nil, nil), nil
	}
	if q.Object == nil {
		return nil, malformed("the request has no object")
	}
	f, err := w.decideAll(ctx, q, k)
	if err != nil {
		return nil, err
	}
	d.Denied, d.Images, d.Verdicts = f.sentences, f.digests, f.verdicts
	d.Allowed = len(f.sentences) == 0 || k.template && !w.policy.enforceTemplates || w.audit()
	w.noteUses(k, d)
	w.fetchAhead(ctx, call, k, d)
	var warn warnings
	withhold := w.hints.of(call)
	if !q.Object.Metadata.Controlled {
		if d.Allowed {
			warn.addCut(f.sentences)
		}
		warn.addHints(f.verdicts, withhold)
	}
	return respond(d, w.hints.annotated(d, withhold), f.causes, warn.texts), nil
}

// decision returns a Decision with what the request says.
func (q *request) decision() Decision {
	d := Decision{
		UID: q.UID, Namespace: q.Namespace, Name: q.Name, Kind: q.Kind.Kind,
		Operation: q.Operation, SubResource: q.SubResource, User: q.User.Name, DryRun: q.DryRun,
	}
	if d.Name == "" && q.Object != nil {
		d.Name = q.Object.Metadata.Name
		if d.Name == "" {
			d.Name = q.Object.Metadata.GenerateName
		}
	}
	return d
}

// exempt returns the reason not to check the images of a request, or "" to check them.
func (q *request) exempt(k kind) string {
	switch {
	case q.Operation == "DELETE" || q.Operation == "CONNECT":
		return "nothing starts"
	case q.Object == nil:
		return ""
	case q.Operation == "UPDATE" && q.Object.Metadata.Deleted:
		return "being deleted" // its finalizers must be removable
	// any user can write the annotation
	case !k.template && q.Object.Metadata.Mirror && q.User.IsNode && strings.HasPrefix(q.User.Name, nodePrefix):
		return "mirror pod" // the kubelet runs it already, from a file of the node
	}
	return ""
}

// decideAll decides on the images of an object, except those that it had before.
func (w *Webhook) decideAll(ctx context.Context, q *request, k kind) (*findings, error) {
	f := &findings{verdicts: make([]Verdict, 0, 4)} // most objects have no more
	known := map[string]int{}                       // index of the verdict, -1 for an image that the object had before
	if q.Operation == "UPDATE" && q.OldObject != nil {
		for _, image := range k.images(q.OldObject) {
			known[image] = -1
		}
	}
	for p, image := range k.images(q.Object) {
		n, decided := known[image]
		if n < 0 {
			continue
		}
		if !decided {
			if n = len(f.verdicts); n == maxImages {
				f.deny(k, p, fmt.Sprintf("More than %d different images in one object", maxImages))
				break
			}
			v := w.policy.Decide(ctx, w.images, image)
			if v.Err != nil { // never a denial: the API server's failurePolicy decides then
				return nil, fmt.Errorf("resolve %s: %w", image, v.Err)
			}
			f.verdicts = append(f.verdicts, v)
			known[image] = n
		}
		if v := &f.verdicts[n]; !v.Allowed {
			f.deny(k, p, v.Sentence)
		}
	}
	if f.omitted > 0 {
		f.sentences = append(f.sentences, fmt.Sprintf("and %d more", f.omitted))
	}
	f.digests = listImages(f.verdicts, func(*Verdict) bool { return true })
	return f, nil
}

// deny records a sentence, and the place it is about, while there is room.
func (f *findings) deny(k kind, p place, sentence string) {
	if len(f.causes) < maxSentences {
		cause := metav1.StatusCause{Type: metav1.CauseTypeForbidden, Message: sentence, Field: k.field(p)}
		f.causes = append(f.causes, cause)
	}
	switch {
	case slices.Contains(f.sentences, sentence):
	case len(f.sentences) < maxSentences:
		f.sentences = append(f.sentences, sentence)
	default:
		f.omitted++
	}
}

// named reports whether the registry holds the image, and its reference does not say the digest.
func (v *Verdict) named() bool { return v.Digest != "" && v.Reference.Digest == "" }

// listImages lists images, each with its digest if the registry holds it and the caller may know it. Invalid ones are
// left out.
func listImages(verdicts []Verdict, may func(*Verdict) bool) []string {
	list := make([]string, 0, len(verdicts))
	for i := range verdicts {
		v := &verdicts[i]
		if v.Reason == InvalidReference {
			continue
		}
		image := v.Image
		if v.named() && may(v) {
			image += "@" + v.Digest.String()
		}
		list = append(list, image)
	}
	return atMostAudit(list)
}

// atMostAudit returns as much of a list as an audit annotation takes, and in place of the rest how many are left out.
func atMostAudit(list []string) []string {
	size := 0
	for i, text := range list {
		if size += len(text) + 1; size > maxAudit {
			return append(list[:i], fmt.Sprintf("and %d more", len(list)-i))
		}
	}
	return list
}

// respond makes the answer; images are those for its audit annotation.
func respond(d *Decision, images []string, causes []metav1.StatusCause, warns []string) *admissionv1.AdmissionResponse {
	r := &admissionv1.AdmissionResponse{
		UID:              types.UID(d.UID),
		Allowed:          d.Allowed,
		Warnings:         warns,
		AuditAnnotations: map[string]string{"decision": d.label()},
	}
	if len(images) > 0 {
		r.AuditAnnotations["images"] = strings.Join(images, " ")
	}
	if len(d.Fetching) > 0 {
		r.AuditAnnotations["fetching"] = strings.Join(d.Fetching, " ")
	}
	if !d.Allowed {
		r.Result = &metav1.Status{
			Status:  metav1.StatusFailure,
			Code:    http.StatusForbidden,
			Reason:  metav1.StatusReasonForbidden,
			Message: strings.Join(d.Denied, "; "),
			Details: &metav1.StatusDetails{Causes: causes},
		}
	}
	return r
}

// label is the decision in the words of the audit annotation.
func (d *Decision) label() string {
	if d.Skipped != "" {
		return OutcomeSkipped + ": " + d.Skipped
	}
	return d.Outcome()
}

// encode returns the text of an answer to a review.
func encode(v *review, r *admissionv1.AdmissionResponse) ([]byte, error) {
	if r.Result != nil {
		var b bytes.Buffer
		out := json.NewEncoder(&b)
		out.SetEscapeHTML(false) // its messages are for people
		err := out.Encode(admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: v.APIVersion, Kind: v.Kind}, Response: r,
		})
		return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
	}
	// Nearly all answers allow. Without reflection they take a fifth of the time, which is that of deciding on an
	// image.
	b := make([]byte, 0, 512)
	text := func(before, s string) {
		b = append(b, before...)
		// an error is invalid UTF-8, of which no string of a review or an answer has any
		b, _ = jsontext.AppendQuote(b, s)
	}
	text(`{"kind":`, v.Kind)
	text(`,"apiVersion":`, v.APIVersion)
	text(`,"response":{"uid":`, string(r.UID))
	b = append(b, `,"allowed":`...)
	b = strconv.AppendBool(b, r.Allowed)
	text(`,"auditAnnotations":{"decision":`, r.AuditAnnotations["decision"])
	if fetching, ok := r.AuditAnnotations["fetching"]; ok {
		text(`,"fetching":`, fetching)
	}
	if images, ok := r.AuditAnnotations["images"]; ok {
		text(`,"images":`, images)
	}
	b = append(b, '}')
	for i, warning := range r.Warnings {
		text([]string{`,"warnings":[`, `,`}[min(i, 1)], warning)
	}
	if len(r.Warnings) > 0 {
		b = append(b, ']')
	}
	return append(b, "}}"...), nil
}
