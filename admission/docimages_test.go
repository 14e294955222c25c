package admission_test

import (
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"trow/admission"
)

// TestImagesOfADocument are those of its pods, each once and in order; what is no object of its kind is an error.
func TestImagesOfADocument(t *testing.T) {
	const pod = "{containers: [{name: c, image: b}, {name: d, image: a}, {name: e, image: b}, {name: f, image: ''}, " +
		"{name: g}], initContainers: [{name: i, image: init}]}"
	for document, want := range map[string][]string{
		"{apiVersion: v1, kind: Pod, spec: " + pod + "}":                                      {"b", "a", "init"},
		"{apiVersion: apps/v1, kind: Deployment, spec: {template: {spec: " + pod + "}}}":      {"b", "a", "init"},
		"{apiVersion: v1, kind: Pod, metadata: {name: empty}}":                                nil,
		"{apiVersion: v1, kind: ConfigMap, data: {image: nginx}}":                             nil,
		"{apiVersion: v1, kind: Pod, spec: {containers: [{name: c, image: [not, a, text]}]}}": {"error"},
		"{apiVersion: v1, kind: Pod, spec: {containers: {name: c}}}":                          {"error"},
	} {
		all, err := admission.ReadDocuments(strings.NewReader(document))
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		got, err := all[0].Images()
		if err != nil && len(got) == 0 {
			got = []string{"error"}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", document, got, want)
		}
	}
	null := admission.Document{Review: &admissionv1.AdmissionReview{Request: &admissionv1.AdmissionRequest{
		Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Object: runtime.RawExtension{Raw: []byte("null")}}}}
	if got, err := null.Images(); len(got) > 0 || err != nil {
		t.Errorf("no object: %q, %v", got, err)
	}
}
