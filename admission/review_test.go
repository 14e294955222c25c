package admission

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"

	"github.com/opencontainers/go-digest"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/storage"
	engine "trow/storage/memory"
	"trow/storage/storagetest"
)

// BenchmarkDecide is the decision alone: a pod with three containers, whose images are among 100,000 of the registry.
// The review has been read, and the answer is not written.
func BenchmarkDecide(b *testing.B) {
	const repos, tags = 100, 1000
	x := storagetest.OpenIndex(b, engine.NewJournal())
	for r := range repos {
		err := x.Update(b.Context(), fmt.Sprintf("team/app-%d", r), func(tx *storage.Tx) error {
			for i := range tags {
				content := fmt.Sprint(r, i)
				m := storage.Manifest{Digest: digest.FromString(content),
					MediaType: "application/vnd.oci.image.manifest.v1+json",
					Size:      int64(len(content))}
				if err := tx.PutManifest(m); err != nil {
					return err
				}
				if err := tx.SetTag(fmt.Sprintf("1.0.%d", i), m.Digest); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	policy, err := NewPolicy(PolicyOptions{Names: []string{"trow.kube-public:31000"}})
	if err != nil {
		b.Fatal(err)
	}
	w := New(Options{Images: x, Policy: policy})
	requests := make([]request, 300) // spread over the index, so that the processor's caches do not help
	for i := range requests {
		o := &object{}
		for c := range 3 {
			image := fmt.Sprintf("trow.kube-public:31000/team/app-%d:1.0.%d", (i*37+c)%repos, (i*7919+c)%tags)
			o.Pod.Containers = append(o.Pod.Containers, image)
		}
		requests[i] = request{UID: "u", Kind: groupKind{"", "Pod"}, Operation: "CREATE", Object: o}
	}
	for name, n := range map[string]int{"one pod": 1, "300 pods": len(requests)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				f, err := w.decideAll(b.Context(), &requests[i%n], kinds[groupKind{"", "Pod"}])
				if err != nil || len(f.verdicts) != 3 || !f.verdicts[0].Allowed {
					b.Fatal(f, err)
				}
				i++
			}
		})
	}
}

// TestAnswersAreThoseOfTheAPITypes compares the answers that are written without the types of the API.
func TestAnswersAreThoseOfTheAPITypes(t *testing.T) {
	v := &review{APIVersion: "admission.k8s.io/v1beta1", Kind: "AdmissionReview"}
	for _, r := range []*admissionv1.AdmissionResponse{
		{UID: "u", Allowed: true, AuditAnnotations: map[string]string{"decision": "allowed"}},
		{UID: "\u2028<é>\n\"", Allowed: true, Warnings: []string{`push it: "x"`},
			AuditAnnotations: map[string]string{"decision": "skipped: nothing starts", "images": "a@sha256:0 b\\"}},
		{UID: "u", Warnings: []string{"a", "b", ""},
			AuditAnnotations: map[string]string{"decision": "warned", "images": ""}},
		{UID: "u", AuditAnnotations: map[string]string{"decision": "denied"}, Result: &metav1.Status{Message: "m"}},
	} {
		b, err := encode(v, r)
		if err != nil {
			t.Fatal(err)
		}
		want := admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: v.APIVersion, Kind: v.Kind}, Response: r,
		}
		var got admissionv1.AdmissionReview
		if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s (%v), want %+v", b, err, want.Response)
		}
	}
}
