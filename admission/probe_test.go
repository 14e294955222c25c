package admission_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	admissionv1 "k8s.io/api/admission/v1"

	"trow/admission"
	"trow/manifests/kube"
)

// TestProbesAreDenied if their value is that of this process, and no other update of a ConfigMap is. They count as
// skipped, and their value is neither logged nor part of the answer.
func TestProbesAreDenied(t *testing.T) {
	const value, sentence = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "this is the probe"
	for name, tt := range map[string]struct {
		kind, operation, annotations string
		denied                       bool
	}{
		"a probe": {"ConfigMap", "UPDATE", fmt.Sprintf(`{%q:%q}`, kube.ProbeAnnotation, value), true},
		"another value": {"ConfigMap", "UPDATE",
			fmt.Sprintf(`{%q:%q}`, kube.ProbeAnnotation, "X"+value[1:]), false},
		"no value":             {"ConfigMap", "UPDATE", fmt.Sprintf(`{%q:""}`, kube.ProbeAnnotation), false},
		"no text":              {"ConfigMap", "UPDATE", fmt.Sprintf(`{%q:[1]}`, kube.ProbeAnnotation), false},
		"another annotation":   {"ConfigMap", "UPDATE", fmt.Sprintf(`{"a":%q}`, value), false},
		"no annotations":       {"ConfigMap", "UPDATE", `null`, false},
		"a ConfigMap made new": {"ConfigMap", "CREATE", fmt.Sprintf(`{%q:%q}`, kube.ProbeAnnotation, value), false},
		"another kind":         {"Secret", "UPDATE", fmt.Sprintf(`{%q:%q}`, kube.ProbeAnnotation, value), false},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			asked := 0
			policy, err := admission.NewPolicy(admission.PolicyOptions{Names: localNames})
			if err != nil {
				t.Fatal(err)
			}
			w := newHook(admission.Options{Images: newRegistry(t, held), Policy: policy, Log: zerolog.New(&log),
				Observe: func(_ context.Context, d admission.Decision) {
					if asked++; d.Outcome() != admission.OutcomeSkipped {
						t.Errorf("counted as %s", d.Outcome())
					}
				},
				Probe: func(v string) string {
					if v == "" {
						t.Error("asked about no value")
					}
					if v == value {
						return sentence
					}
					return ""
				}})
			body := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",
				"kind":{"group":"","version":"v1","kind":%q},"operation":%q,"name":"trow-ca","namespace":"kube-public",
				"dryRun":true,"object":{"metadata":{"name":"trow-ca","annotations":%s},"data":{"ca.crt":"x"}}}}`,
				tt.kind, tt.operation, tt.annotations)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/validate", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			answer := httptest.NewRecorder()
			w.ServeHTTP(answer, r)
			var v admissionv1.AdmissionReview
			if err := json.Unmarshal(answer.Body.Bytes(), &v); err != nil || v.Response == nil {
				t.Fatalf("%d %s: %v", answer.Code, answer.Body, err)
			}
			if v.Response.Allowed == tt.denied || tt.denied && (v.Response.Result.Message != sentence ||
				v.Response.Result.Code != 403) || v.Response.UID != "u" || asked != 1 {
				t.Errorf("%+v, observed %d times", v.Response, asked)
			}
			if strings.Contains(log.String(), value) || strings.Contains(answer.Body.String(), value) {
				t.Errorf("the value is in the log or the answer: %s %s", &log, answer.Body)
			}
		})
	}
}

// TestAWebhookWithoutProbesAllowsThem: any client may write the annotation.
func TestAWebhookWithoutProbesAllowsThem(t *testing.T) {
	w, _ := newWebhook(t, admission.PolicyOptions{})
	o := object{"metadata": object{"annotations": object{kube.ProbeAnnotation: "x"}}}
	if r := answer(t, w, reviewOf(t, "", "ConfigMap", o, object{"operation": "UPDATE"})); !r.Allowed {
		t.Errorf("%+v", r)
	}
}
