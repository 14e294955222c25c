package admission

import (
	"github.com/go-json-experiment/json"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A probe is an update of a ConfigMap with which the server finds out whether the API server reaches this webhook: see
// package cluster. The API server calls the webhook, and the denial that it returns proves that it did.

// decodeProbe returns the value of a probe in an object, which is not trusted; empty if the object is not a probe.
func decodeProbe(q *request, text []byte) string {
	if q.Kind != (groupKind{"", "ConfigMap"}) || q.Operation != "UPDATE" || len(text) == 0 {
		return ""
	}
	var o struct {
		Metadata struct {
			Annotations struct {
				Probe string `json:"trow.io/probe"` // kube.ProbeAnnotation
			} `json:"annotations"`
		} `json:"metadata"`
	}
	if json.Unmarshal(text, &o) != nil {
		return ""
	}
	return o.Metadata.Annotations.Probe
}

// denyProbe returns the denial of a probe of this process; nil for any other request. A value that another client made
// up has no effect. For the log and the metrics the request was skipped: it is about no image.
func (w *Webhook) denyProbe(q *request, d *Decision) *admissionv1.AdmissionResponse {
	if q.Probe == "" || w.probe == nil {
		return nil
	}
	sentence := w.probe(q.Probe)
	if sentence == "" {
		return nil
	}
	d.Allowed, d.Skipped = true, "probe of the webhook"
	r := respond(d, nil, nil, nil)
	r.Allowed, r.Result = false, &metav1.Status{Status: metav1.StatusFailure, Code: 403,
		Reason: metav1.StatusReasonForbidden, Message: sentence}
	return r
}
