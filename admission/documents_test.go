package admission_test

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"trow/admission"
)

func describe(d admission.Document) string {
	s := fmt.Sprintf("%d:%d %s %s %s/%s", d.Number, d.Line, d.APIVersion, d.Kind, d.Namespace, d.Name)
	if d.Review == nil {
		return s + " skipped"
	}
	return s
}

func TestReadDocuments(t *testing.T) {
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: nginx}]}\n"
	service := "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: web}\n"
	podJSON := `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"g-"}}`
	for _, tt := range []struct {
		name   string
		stream string
		want   []string
	}{
		{"nothing", "", nil},
		{"only markers and comments", "---\n# nothing\n---\n...\n", nil},
		{"one document", pod, []string{"1:1 v1 Pod /p"}},
		{"several, with markers in every form", "\ufeff---\n" + pod + "--- # next\n" + service + "...\n---\r\n\n---\t\n" +
			pod + "---",
			[]string{"1:1 v1 Pod /p", "2:6 v1 Service web/s skipped", "3:13 v1 Pod /p"}},
		{"a marker with content", "--- {apiVersion: v1, kind: Pod}\n", []string{"1:1 v1 Pod /"}},
		{"text that only looks like a marker", "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    b\n----: x\n",
			[]string{"1:1 v1 ConfigMap / skipped"}},
		{"consecutive JSON values", podJSON + "\n" + podJSON, []string{"1:1 v1 Pod /g-", "2:1 v1 Pod /g-"}},
		{"a List", "apiVersion: v1\nkind: List\nitems:\n- " + podJSON +
			"\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n",
			[]string{"1:1 v1 Pod /g-", "1:1 apps/v1 Deployment /d"}},
		{"an empty List", "apiVersion: v1\nkind: List\nitems: []\n", nil},
		{"a kind of another group", "apiVersion: example.com/v1\nkind: Pod\n", []string{"1:1 example.com/v1 Pod / skipped"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := admission.ReadDocuments(strings.NewReader(tt.stream))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range docs {
				got = append(got, describe(d))
			}
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestErrorsOfManifestsNameTheDocument(t *testing.T) {
	good := "apiVersion: v1\nkind: Pod\n---\n"
	for _, tt := range []struct{ name, stream, want string }{
		{"bad YAML", good + "a: [\n", "document 2, from line 3: "},
		{"a key twice", good + "a: 1\na: 2\n", `"a" already set`},
		{"bad JSON", `{"a":}`, "document 1, from line 1: "},
		{"a scalar", good + "hello\n", "document 2, from line 3: not an object"},
		{"a list", "- a\n", "document 1, from line 1: not an object"},
		{"no kind", "apiVersion: v1\n", "document 1, from line 1: apiVersion and kind are missing"},
		{"a name that is a number", "apiVersion: v1\nkind: Pod\nmetadata: {name: 1}\n", "document 1, from line 1: "},
		{"a bad item", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}, {}]\n",
			"document 1, from line 1: item 2 of the List: apiVersion and kind are missing"},
		{"the second JSON value", `{"apiVersion":"v1","kind":"Pod"}{}`,
			"document 2, from line 1: apiVersion and kind are missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if docs, err := admission.ReadDocuments(strings.NewReader(tt.stream)); err == nil ||
				!strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v\nwant %s", docs, err, tt.want)
			}
		})
	}
	if _, err := admission.ReadDocuments(&endless{}); err == nil || !strings.Contains(err.Error(), "32 MiB") {
		t.Errorf("an endless stream: %v", err)
	}
	if _, err := admission.ReadDocuments(failing{io.ErrClosedPipe}); err != io.ErrClosedPipe {
		t.Errorf("a broken stream: %v", err)
	}
}

func TestADocumentIsReviewedLikeACreation(t *testing.T) {
	docs, err := admission.ReadDocuments(strings.NewReader(
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{image: nginx}]}\n---\n" +
			"apiVersion: apps/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{image: nginx}]}}}\n"))
	if err != nil || len(docs) != 2 {
		t.Fatal(docs, err)
	}
	w, seen := newWebhook(t, admission.PolicyOptions{})
	for i, allowed := range []bool{false, true} {
		review := docs[i].Review
		if r := answer(t, w, string(encode(t, review))); r.Allowed != allowed {
			t.Errorf("over HTTP %s: %+v", describe(docs[i]), r)
		}
		r, err := w.Review(t.Context(), review.Request)
		if err != nil || r.Allowed != allowed || r.UID != review.Request.UID {
			t.Errorf("%s: %+v, %v", describe(docs[i]), r, err)
		}
		if d := (*seen)[2*i+1]; !d.DryRun || d.Namespace != "default" || d.Operation != "CREATE" || len(d.Denied) != 1 {
			t.Errorf("observed %+v", d)
		}
	}
	if docs[0].Review.Request.UID == docs[1].Review.Request.UID {
		t.Error("both reviews have the same uid")
	}
	if resource := docs[1].Review.Request.Resource.String(); !strings.Contains(resource, "deployments") {
		t.Errorf("the resource is %s", resource)
	}
}
