package admission_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/opencontainers/go-digest"
	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"trow/admission"
	"trow/storage"
)

var update = flag.Bool("update", false, "write the golden files")

func encode(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func post(w http.Handler, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/validate?timeout=5s", body)
	r.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, r)
	return rec
}

// answer posts a review, verifies the answer and returns it.
func answer(t *testing.T, w http.Handler, body string) *admissionv1.AdmissionResponse {
	t.Helper()
	rec := post(w, strings.NewReader(body))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return verify(t, []byte(body), rec.Body.Bytes())
}

// verify checks an answer as the API server does: version, kind and uid are echoed, there is no patch, and a denial is
// complete.
func verify(tb testing.TB, asked, answered []byte) *admissionv1.AdmissionResponse {
	tb.Helper()
	var a admissionv1.AdmissionReview
	var q struct { // decoded exactly: encoding/json would take Request for request
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Request    struct {
			UID string `json:"uid"`
		} `json:"request"`
	}
	if err := jsonv2.Unmarshal(asked, &q); err != nil {
		tb.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(answered))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		tb.Fatalf("the answer is not an AdmissionReview: %v\n%s", err, answered)
	}
	r := a.Response
	switch {
	case a.APIVersion != q.APIVersion, a.Kind != q.Kind, a.Request != nil, r == nil:
		tb.Fatalf("the answer is not a response of the version of the review: %s", answered)
	case string(r.UID) != q.Request.UID:
		tb.Fatalf("the uid is %q, want %q", r.UID, q.Request.UID)
	case r.Patch != nil, r.PatchType != nil:
		tb.Fatal("the answer has a patch")
	case !r.Allowed && (r.Result == nil || r.Result.Code != 403 || r.Result.Reason != metav1.StatusReasonForbidden ||
		r.Result.Status != metav1.StatusFailure || r.Result.Message == "" || len(r.Result.Details.Causes) == 0):
		tb.Fatalf("the denial is incomplete: %s", answered)
	case len(answered) > 128<<10:
		tb.Fatalf("the answer has %d bytes", len(answered))
	}
	verifyWarnings(tb, r.Warnings)
	return r
}

func verifyWarnings(tb testing.TB, warnings []string) {
	tb.Helper()
	total := 0
	for i, text := range warnings {
		total += len(text)
		if text == "" || len(text) > 120 || strings.ContainsFunc(text, notPrintable) ||
			slices.Contains(warnings[:i], text) {
			tb.Errorf("warning %q", text)
		}
	}
	if total > 4096 {
		tb.Errorf("%d characters of warnings", total)
	}
}

func TestGoldenAnswers(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	w, _ := newWebhook(t, admission.PolicyOptions{AllowPrefixes: []string{"quay.io/team/"}})
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.json") {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			rec := post(w, bytes.NewReader(body))
			if rec.Code != http.StatusOK || rec.Header().Get("Content-Type") != "application/json" {
				t.Fatalf("status %d, %s: %s", rec.Code, rec.Header(), rec.Body)
			}
			verify(t, body, rec.Body.Bytes())
			var got bytes.Buffer
			if err := json.Indent(&got, rec.Body.Bytes(), "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			compareGolden(t, strings.TrimSuffix(file, ".json")+".golden.json", got.Bytes())
		})
	}
}

func compareGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestV1beta1IsAnsweredWithV1beta1(t *testing.T) {
	body, err := os.ReadFile("testdata/pod-create-v1beta1.json")
	if err != nil {
		t.Fatal(err)
	}
	w, _ := newWebhook(t, admission.PolicyOptions{})
	var a admissionv1beta1.AdmissionReview
	if err := json.Unmarshal(post(w, bytes.NewReader(body)).Body.Bytes(), &a); err != nil {
		t.Fatal(err)
	}
	if a.GroupVersionKind() != admissionv1beta1.SchemeGroupVersion.WithKind("AdmissionReview") || a.Response.Allowed {
		t.Errorf("got %+v", a)
	}
}

func TestOneAnswerNamesAllDeniedImages(t *testing.T) {
	w, _ := newWebhook(t, admission.PolicyOptions{})
	r := reviewPod(t, w, podOf("nginx", host+"/app:1", host+"/app:9", "nginx:2", "nginx"))
	if want := remote("docker.io/nginx") + "; " + local(host+"/app:9"); r.message() != want {
		t.Errorf("got  %s\nwant %s", r.message(), want)
	}
	var fields []string
	for _, c := range r.Result.Details.Causes {
		fields = append(fields, c.Field)
	}
	want := []string{"spec.containers[0].image", "spec.containers[2].image", "spec.containers[3].image",
		"spec.containers[4].image"}
	if !slices.Equal(fields, want) {
		t.Errorf("causes: %v", fields)
	}
}

func TestWhichImagesAreChecked(t *testing.T) {
	bad := podOf("nginx")
	with := func(o object, member string, value any) object {
		o = object{"metadata": object{"name": "p"}, "spec": o["spec"]}
		o["metadata"].(object)[member] = value
		return o
	}
	mirror := with(bad, "annotations", object{"kubernetes.io/config.mirror": "x"})
	deleting := with(bad, "deletionTimestamp", "2026-11-20T09:14:03Z")
	node := object{"username": "system:node:n", "groups": []string{"system:nodes", "system:authenticated"}}
	for _, tt := range []struct {
		name    string
		group   string
		kind    string
		object  object
		change  object
		allowed bool
	}{
		{name: "a pod that is created", kind: "Pod", object: bad},
		{name: "an unknown operation, like CREATE", kind: "Pod", object: bad, change: object{"operation": "create"}},
		{name: "an update that brings an image", kind: "Pod", object: bad,
			change: object{"operation": "UPDATE", "oldObject": podOf("redis")}},
		{name: "an update without an old object", kind: "Pod", object: bad, change: object{"operation": "UPDATE"}},
		{name: "an ephemeral container", kind: "Pod",
			object: object{"spec": object{"ephemeralContainers": []any{object{"image": "nginx"}}}},
			change: object{"operation": "UPDATE", "subResource": "ephemeralcontainers", "oldObject": podOf("redis")}},
		{name: "another subresource that brings an image", kind: "Pod", object: bad,
			change: object{"operation": "UPDATE", "subResource": "status", "oldObject": podOf("redis")}},
		{name: "an init container", kind: "Pod",
			object: object{"spec": object{"initContainers": []any{object{"image": "nginx"}}}}},
		{name: "an image volume", kind: "Pod",
			object: object{"spec": object{"volumes": []any{object{"image": object{"reference": "nginx"}}}}}},
		{name: "an image volume without a reference", kind: "Pod",
			object: object{"spec": object{"volumes": []any{object{"image": object{}}}}}},
		{name: "a container without an image", kind: "Pod",
			object: object{"spec": object{"containers": []any{object{"name": "c"}}}}},
		{name: "a mirror pod that a user sends", kind: "Pod", object: mirror},
		{name: "a plain pod that a node sends", kind: "Pod", object: bad, change: object{"userInfo": node}},
		{name: "a mirror pod of somebody in the nodes' group", kind: "Pod", object: mirror,
			change: object{"userInfo": object{"username": "mallory", "groups": []string{"system:nodes"}}}},
		{name: "a mirror pod of somebody with a node's name", kind: "Pod", object: mirror,
			change: object{"userInfo": object{"username": "system:node:n",
				"groups": []string{"system:authenticated"}}}},
		{name: "a deletion timestamp on creation", kind: "Pod", object: deleting},
		{name: "a dry run", kind: "Pod", object: bad, change: object{"dryRun": true}},

		{name: "not an update with the same images", kind: "Pod", object: bad,
			change: object{"operation": "UPDATE", "oldObject": bad}, allowed: true},
		{name: "not a subresource with the same images", kind: "Pod", object: bad,
			change: object{"operation": "UPDATE", "subResource": "status", "oldObject": bad}, allowed: true},
		{name: "not an object that is being deleted", kind: "Pod", object: deleting,
			change: object{"operation": "UPDATE", "oldObject": podOf("redis")}, allowed: true},
		{name: "not a mirror pod of a node", kind: "Pod", object: mirror, change: object{"userInfo": node},
			allowed: true},
		{name: "not a deletion", kind: "Pod", change: object{"operation": "DELETE", "oldObject": bad}, allowed: true},
		{name: "not a connection", kind: "PodExecOptions", object: object{"container": "c"},
			change: object{"operation": "CONNECT"}, allowed: true},
		{name: "not a binding", kind: "Binding", object: object{"target": object{}},
			change: object{"subResource": "binding"}, allowed: true},
		{name: "not a kind of the same name", group: "example.com", kind: "Pod", object: bad, allowed: true},
		{name: "not a kind of another shape", group: "example.com", kind: "Widget", object: object{"spec": "template"},
			allowed: true},
		{name: "not an image of another kind of volume", kind: "Pod",
			object: object{"spec": object{"volumes": []any{object{"rbd": object{"image": "nginx"}}}}}, allowed: true},
		{name: "not a status", kind: "Pod",
			object: object{"status": object{"containerStatuses": []any{object{"image": "nginx"}}}}, allowed: true},
		{name: "not members in another case", kind: "Pod", object: object{"Spec": bad["spec"]}, allowed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := newWebhook(t, admission.PolicyOptions{})
			if r := answer(t, w, reviewOf(t, tt.group, tt.kind, tt.object, tt.change)); r.Allowed != tt.allowed {
				t.Errorf("allowed is %v: %+v", r.Allowed, r.Result)
			}
		})
	}
}

// workload puts the spec of a pod into an object of a kind.
func workload(kind string, pod object) object {
	template := object{"spec": pod["spec"]}
	switch kind {
	case "PodTemplate":
		return object{"template": template}
	case "CronJob":
		return object{"spec": object{"jobTemplate": object{"spec": object{"template": template}}}}
	}
	return object{"spec": object{"template": template}}
}

func TestTemplatesWarnOrDeny(t *testing.T) {
	for _, tt := range []struct{ group, kind, field string }{
		{"", "PodTemplate", "template.spec"},
		{"", "ReplicationController", "spec.template.spec"},
		{"apps", "Deployment", "spec.template.spec"},
		{"apps", "ReplicaSet", "spec.template.spec"},
		{"apps", "StatefulSet", "spec.template.spec"},
		{"apps", "DaemonSet", "spec.template.spec"},
		{"batch", "Job", "spec.template.spec"},
		{"batch", "CronJob", "spec.jobTemplate.spec.template.spec"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			body := reviewOf(t, tt.group, tt.kind, workload(tt.kind, podOf("auto", " ", "", "nginx")), nil)
			w, seen := newWebhook(t, admission.PolicyOptions{})
			r := answer(t, w, body)
			if !r.Allowed || !slices.Equal(r.Warnings, []string{remote("docker.io/nginx")}) ||
				r.AuditAnnotations["decision"] != "warned" {
				t.Errorf("got %+v", r)
			}
			if d := (*seen)[0]; !d.Allowed || !slices.Equal(d.Denied, r.Warnings) {
				t.Errorf("observed %+v", d)
			}
			w = newHook(admission.Options{
				Images: newRegistry(t, held), Policy: newPolicy(t, admission.PolicyOptions{EnforceTemplates: true}),
			})
			r = answer(t, w, body)
			if r.Allowed || r.Result.Details.Causes[0].Field != tt.field+".containers[3].image" || len(r.Warnings) > 0 {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestALongSentenceIsCutInAWarning(t *testing.T) {
	image := host + "/" + strings.Repeat("a", 200) + ":1"
	w, _ := newWebhook(t, admission.PolicyOptions{})
	r := answer(t, w, reviewOf(t, "apps", "Deployment", workload("Deployment", podOf(image)), nil))
	if want := local(image)[:117] + "..."; !slices.Equal(r.Warnings, []string{want}) {
		t.Errorf("got %q", r.Warnings)
	}
}

func TestWarningsHelp(t *testing.T) {
	app1 := digestOf("app one")
	long := "spec/" + strings.Repeat("a", 100)
	for _, tt := range []struct {
		name     string
		options  admission.PolicyOptions
		images   []string
		warnings []string
	}{
		{name: "an absent tag: push it, and the existing tags", images: []string{host + "/app:3"},
			warnings: []string{"push it: docker push " + host + "/app:3", "tags of app here: 1, 2, stable"}},
		{name: "an absent repository: push it", images: []string{host + "/nothing:1"},
			warnings: []string{"push it: docker push " + host + "/nothing:1"}},
		{name: "an absent image that a rule allows", options: admission.PolicyOptions{AllowPrefixes: []string{host}},
			images:   []string{host + "/nothing:1"},
			warnings: []string{"push it: docker push " + host + "/nothing:1"}},
		{name: "a wrong digest: that of the tag", images: []string{host + "/app:1@sha256:" + hex64},
			warnings: []string{"app:1 is here as " + app1, "tags of app here: 1, 2, stable"}},
		{name: "a digest alone cannot be pushed", images: []string{host + "/app@sha256:" + hex64},
			warnings: []string{"tags of app here: 1, 2, stable"}},
		{name: "many tags", images: []string{host + "/many:9"},
			warnings: []string{"push it: docker push " + host + "/many:9", "tags of many here: 0, 1, 2, 3, 4, ..."}},
		{name: "long tags", images: []string{host + "/long:9"},
			warnings: []string{"push it: docker push " + host + "/long:9",
				"tags of long here: " + strings.Repeat("a", 90) +
					", ..."}},
		{name: "tags too long to list", images: []string{host + "/longer:9"},
			warnings: []string{"push it: docker push " + host + "/longer:9"}},
		{name: "a command that is too long", images: []string{host + "/" + long + ":9"}},
		{name: "nothing about an image that is present", images: []string{host + "/app:1"}},
		{name: "nothing about an image on a deny list",
			options: admission.PolicyOptions{DisallowLocalPrefixes: []string{"app"}},
			images:  []string{host + "/app:3"}},
		{name: "nothing about remote images", images: []string{"nginx", "quay.io/x"}},
		{name: "a short name that a rule allows", options: admission.PolicyOptions{AllowDockerOfficial: true},
			images:   []string{"nginx:1", "docker.io/redis", "nginx"},
			warnings: []string{"nginx names no host: CRI-O may pull it from elsewhere; write docker.io/nginx"}},
		{name: "nothing about a short name that only the default allows",
			options: admission.PolicyOptions{Default: "Allow"}, images: []string{"nginx:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			images := map[string]string{"long:" + strings.Repeat("a", 90): "a", "long:bbbbbbbbbb": "b", "longer:" +
				strings.Repeat("a", 120): "c"}
			for i := range 8 {
				images["many:"+fmt.Sprint(i)] = "x"
			}
			for image, content := range held {
				images[image] = content
			}
			w := newHook(admission.Options{Images: newRegistry(t, images), Policy: newPolicy(t, tt.options)})
			r := reviewPod(t, w, podOf(tt.images...))
			verifyWarnings(t, r.Warnings)
			if !slices.Equal(r.Warnings, tt.warnings) {
				t.Errorf("got  %q\nwant %q", r.Warnings, tt.warnings)
			}
		})
	}
}

func TestADamagedImageIsAllowedWithAWarning(t *testing.T) {
	reg := newRegistry(t, held)
	if err := reg.Quarantine(t.Context(), digest.Digest(digestOf("app one")), "test"); err != nil {
		t.Fatal(err)
	}
	w := newHook(admission.Options{Images: reg, Policy: newPolicy(t, admission.PolicyOptions{})})
	r := reviewPod(t, w, podOf(host+"/app:1", host+"/app:2"))
	if want := []string{"damaged here, push it again: " + host + "/app:1"}; !r.Allowed ||
		!slices.Equal(r.Warnings, want) {
		t.Errorf("allowed %v with %q, want %q", r.Allowed, r.Warnings, want)
	}
}

func TestObjectsOfControllersGetTheDenialWithoutWarnings(t *testing.T) {
	pod := podOf(host+"/app:3", "nginx")
	pod["metadata"] = object{"generateName": "web-",
		"ownerReferences": []any{object{"kind": "X"}, object{"kind": "ReplicaSet", "controller": true}}}
	w, seen := newWebhook(t, admission.PolicyOptions{})
	r := reviewPod(t, w, pod)
	if r.Allowed || len(r.Warnings) > 0 || !strings.Contains(r.message(), remote("docker.io/nginx")) {
		t.Errorf("got %+v", r)
	}
	if name := (*seen)[0].Name; name != "web-" {
		t.Errorf("the name is %q", name)
	}
}

func TestHintsAreLeftOutWhenTheRegistryFails(t *testing.T) {
	reg := newRegistry(t, held)
	reg.tags = func() error { return errors.New("busy") }
	w := newHook(admission.Options{Images: reg, Policy: newPolicy(t, admission.PolicyOptions{})})
	r := reviewPod(t, w, podOf(host+"/app:3"))
	if r.Allowed || !slices.Equal(r.Warnings, []string{"push it: docker push " + host + "/app:3"}) {
		t.Errorf("got %+v", r)
	}
}

func TestAuditAnnotationsHaveDecisionAndDigests(t *testing.T) {
	w, seen := newWebhook(t, admission.PolicyOptions{AllowDockerOfficial: true})
	pinned := host + "/app@" + digestOf("app one")
	r := reviewPod(t, w, podOf(host+"/app:1", "nginx", pinned, "NoImage"))
	want := map[string]string{
		"decision": "denied",
		"images":   host + "/app:1@" + digestOf("app one") + " nginx " + pinned,
	}
	if fmt.Sprint(r.AuditAnnotations) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", r.AuditAnnotations, want)
	}
	d := (*seen)[0]
	if d.UID != "u" || d.Kind != "Pod" || d.Operation != "CREATE" || d.Name != "p" || d.Allowed || len(d.Denied) != 1 ||
		len(d.Images) != 3 {
		t.Errorf("observed %+v", d)
	}
	r = response{answer(t, w, reviewOf(t, "", "Service", object{}, nil))}
	if r.AuditAnnotations["decision"] != "skipped: kind without images" {
		t.Errorf("got %v", r.AuditAnnotations)
	}
}

func TestAnErrorOfTheRegistryIsAFailedCallAndNotADenial(t *testing.T) {
	broken := errors.New("journal is silent")
	for name, resolve := range map[string]func(repo, ref string) error{
		"the image":          func(string, string) error { return broken },
		"the one disallowed": func(_, ref string) error { return map[bool]error{true: broken}[ref == "2"] },
	} {
		t.Run(name, func(t *testing.T) {
			var seen []admission.Decision
			reg := newRegistry(t, held)
			reg.resolve = resolve
			w := newHook(admission.Options{
				Images: reg, Policy: newPolicy(t, admission.PolicyOptions{DisallowLocalImages: []string{"app:2"}}),
				Observe: func(_ context.Context, d admission.Decision) { seen = append(seen, d) },
			})
			rec := post(w, strings.NewReader(reviewOf(t, "", "Pod", podOf(host+"/app:1"), nil)))
			if rec.Code != http.StatusInternalServerError || !strings.Contains(rec.Body.String(), "u-1") ||
				strings.Contains(rec.Body.String(), "silent") {
				t.Errorf("status %d: %s", rec.Code, rec.Body)
			}
			if len(seen) != 1 || !errors.Is(seen[0].Err, broken) || seen[0].Allowed || seen[0].UID != "u-1" {
				t.Errorf("observed %+v", seen)
			}
		})
	}
}

// TestAMissThatCannotBeConfirmedSaysWhy in a way that the API server passes on: the text of a 503 it does not.
func TestAMissThatCannotBeConfirmedSaysWhy(t *testing.T) {
	reg := newRegistry(t, held)
	reg.resolve = func(string, string) error { return fmt.Errorf("journal: %w", storage.ErrUnavailable) }
	w := newHook(admission.Options{Images: reg, Policy: newPolicy(t, admission.PolicyOptions{}),
		Observe: func(context.Context, admission.Decision) {}})
	rec := post(w, strings.NewReader(reviewOf(t, "", "Pod", podOf(host+"/app:1"), nil)))
	if rec.Code != http.StatusInternalServerError || rec.Header().Get("Retry-After") != "" ||
		!strings.Contains(rec.Body.String(), "cannot decide right now, because its storage does not answer") ||
		!strings.Contains(rec.Body.String(), "u-1") || strings.Contains(rec.Body.String(), "journal") {
		t.Errorf("status %d, %v: %s", rec.Code, rec.Header(), rec.Body)
	}
}

func TestAPanicIsAFailedCallThatNamesTheReview(t *testing.T) {
	var seen []admission.Decision
	reg := newRegistry(t, held)
	reg.resolve = func(string, string) error { panic("boom") }
	w := newHook(admission.Options{
		Images: reg, Policy: newPolicy(t, admission.PolicyOptions{}),
		Observe: func(_ context.Context, d admission.Decision) { seen = append(seen, d) },
	})
	body := reviewOf(t, "", "Pod", podOf(host+"/app:1"), nil)
	rec := post(w, strings.NewReader(body))
	if rec.Code != http.StatusInternalServerError || !strings.Contains(rec.Body.String(), "u-1") ||
		strings.Contains(rec.Body.String(), "boom") {
		t.Errorf("status %d: %s", rec.Code, rec.Body)
	}
	if len(seen) != 1 || !strings.Contains(seen[0].Err.Error(), "boom") ||
		!strings.Contains(seen[0].Err.Error(), "Decide") {
		t.Errorf("observed %+v", seen)
	}

	reg.resolve = func(string, string) error { panic(http.ErrAbortHandler) }
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("recovered %v", p)
		}
	}()
	post(w, strings.NewReader(body))
}

func TestRequestsThatAreNotReviewsAreRefused(t *testing.T) {
	const start = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":`
	pod := `"kind":{"group":"","kind":"Pod"},"operation":"CREATE"`
	for _, tt := range []struct {
		name        string
		method      string // POST unless given
		contentType string // application/json unless given
		body        string
		status      int
		text        string
	}{
		{name: "another method", method: "GET", status: 405, text: "POST"},
		{name: "no content type", contentType: " ", status: 415, text: "application/json"},
		{name: "another content type", contentType: "application/yaml", status: 415, text: "application/json"},
		{name: "an empty body", status: 400, text: "the body is not an AdmissionReview"},
		{name: "not JSON", body: "hello", status: 400, text: "the body is not an AdmissionReview"},
		{name: "not an object", body: `[]`, status: 400, text: "the body is not an AdmissionReview"},
		{name: "another kind", body: `{"apiVersion":"v1","kind":"Pod"}`, status: 400, text: `the body is "v1" "Pod"`},
		{name: "another version", body: `{"apiVersion":"admission.k8s.io/v2","kind":"AdmissionReview"}`, status: 400,
			text: "v1 or v1beta1"},
		{name: "no request", body: start + `null}`, status: 400, text: "has no request"},
		{name: "a request in another case", body: strings.Replace(start, "request", "Request", 1) + `{"uid":"u"}}`,
			status: 400, text: "has no request"},
		{name: "no uid", body: start + `{` + pod + `}}`, status: 400, text: "has no uid"},
		{name: "a long uid", body: start + `{"uid":"` + strings.Repeat("u", 257) + `"}}`, status: 400,
			text: "longer than 256"},
		{name: "no object to check", body: start + `{"uid":"u",` + pod + `}}`, status: 400,
			text: "has no object (review u)"},
		{name: "a duplicate name", body: start + `{"uid":"u","uid":"u"}}`, status: 400, text: "duplicate"},
		{name: "a duplicate name in a part that is skipped", body: start + `{"uid":"u",` + pod +
			`,"object":{"status":{"a":1,"a":2}}}}`, status: 400, text: "duplicate"},
		{name: "invalid UTF-8", body: start + "{\"uid\":\"u\",\"name\":\"\xff\"}}", status: 400, text: "UTF-8"},
		{name: "two values", body: start + `{"uid":"u","kind":{"kind":"X"}}} {}`, status: 400, text: "the body is not"},
		{name: "containers that are not a list", body: start + `{"uid":"u",` + pod +
			`,"object":{"spec":{"containers":"x"}}}}`, status: 400, text: "the body is not"},
		{name: "an image that is a number", body: start + `{"uid":"u",` + pod +
			`,"object":{"spec":{"containers":[{"image":1e99999}]}}}}`, status: 400, text: "the body is not"},
		{name: "deep nesting", body: start + `{"uid":"u",` + pod + `,"object":{"status":` +
			strings.Repeat("[", 100_000),
			status: 400, text: "depth"},
		{name: "commas", body: strings.Repeat(",", 7<<20), status: 400, text: "the body is not"},
		{name: "too many bytes", body: strings.Repeat(" ", 7<<20+1), status: 413, text: "7 MiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, seen := newWebhook(t, admission.PolicyOptions{})
			r := httptest.NewRequest(cmp.Or(tt.method, "POST"), "/validate", strings.NewReader(tt.body))
			r.Header.Set("Content-Type", cmp.Or(tt.contentType, "application/json; charset=utf-8"))
			rec := httptest.NewRecorder()
			start := time.Now()
			w.ServeHTTP(rec, r)
			if rec.Code != tt.status || !strings.Contains(rec.Body.String(), tt.text) || rec.Body.Len() > 1000 {
				t.Errorf("status %d, want %d with %q: %s", rec.Code, tt.status, tt.text, rec.Body)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			if (rec.Header().Get("Allow") == "POST") != (tt.status == 405) || len(*seen) > 0 {
				t.Errorf("Allow: %q, observed %v", rec.Header().Get("Allow"), *seen)
			}
		})
	}
}

// endless is a body without an end.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read += len(p)
	return len(p), nil
}

func TestABodyWithoutAnEndIsNotReadCompletely(t *testing.T) {
	w, _ := newWebhook(t, admission.PolicyOptions{})
	body := &endless{}
	if rec := post(w, body); rec.Code != http.StatusRequestEntityTooLarge || body.read > 16<<20 {
		t.Errorf("status %d after %d bytes", rec.Code, body.read)
	}
	for err, text := range map[error]string{io.ErrUnexpectedEOF: "ends early", io.ErrClosedPipe: "cannot be read"} {
		if rec := post(w, io.MultiReader(strings.NewReader("{"), failing{err})); rec.Code != 400 ||
			!strings.Contains(rec.Body.String(), text) {
			t.Errorf("%v: status %d: %s", err, rec.Code, rec.Body)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestHugeValuesThatAreSkippedDoNoHarm(t *testing.T) {
	w, _ := newWebhook(t, admission.PolicyOptions{})
	body := strings.Replace(reviewOf(t, "", "Pod", podOf(host+"/app:1"), nil), `"metadata":{`,
		`"metadata":{"generation":`+strings.Repeat("9", 1<<20)+`e999999999,"x":"`+strings.Repeat(`\u0000`, 1<<19)+
			`",`, 1)
	if r := answer(t, w, body); !r.Allowed {
		t.Errorf("got %+v", r)
	}
}

func TestAHugePodGetsABoundedAnswer(t *testing.T) {
	w, seen := newWebhook(t, admission.PolicyOptions{})
	for name, image := range map[string]func(i int) string{
		"one image":                 func(int) string { return "nginx" },
		"many remote images":        func(i int) string { return fmt.Sprintf("quay.io/x%d/y", i) },
		"many local images":         func(i int) string { return fmt.Sprintf("%s/x%d", host, i) },
		"images that are too long":  func(i int) string { return fmt.Sprintf("%01100d", i) },
		"images as long as allowed": func(i int) string { return fmt.Sprintf("quay.io%0760d/x%0254d", i, i) },
	} {
		t.Run(name, func(t *testing.T) {
			var images []string
			for size := 0; size < 3<<20 && len(images) < 50_000; size += len(image(0)) + 30 {
				images = append(images, image(len(images)))
			}
			start := processorTime(t)
			r := answer(t, w, reviewOf(t, "", "Pod", podOf(images...), nil))
			if took := processorTime(t) - start; took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			d := (*seen)[len(*seen)-1]
			if r.Allowed || len(r.Result.Details.Causes) != 20 || len(d.Denied) > 21 ||
				len(r.AuditAnnotations["images"]) > 5000 {
				t.Errorf("%d causes, %d sentences, %d bytes", len(r.Result.Details.Causes), len(d.Denied),
					len(r.AuditAnnotations["images"]))
			}
			if last := d.Denied[len(d.Denied)-1]; len(d.Denied) > 20 && !strings.HasPrefix(last, "and ") {
				t.Errorf("the last sentence is %q", last)
			}
		})
	}
}

func TestAPodWithTooManyImagesIsDenied(t *testing.T) {
	w, _ := newWebhook(t, admission.PolicyOptions{Default: "Allow"})
	var images []string
	for i := range 257 {
		images = append(images, fmt.Sprintf("quay.io/x:%d", i))
	}
	if r := reviewPod(t, w, podOf(images[:256]...)); !r.Allowed {
		t.Errorf("256: %s", r.message())
	}
	if r := reviewPod(t, w, podOf(images...)); r.message() != "More than 256 different images in one object" {
		t.Errorf("257: %q", r.message())
	}
	// The images after it are not looked at.
	images = append(images, "NGINX", "quay.io/x:258")
	r := reviewPod(t, w, podOf(images...))
	if r.message() != "More than 256 different images in one object" || len(r.Result.Details.Causes) != 1 ||
		r.Result.Details.Causes[0].Field != "spec.containers[256].image" {
		t.Errorf("259: %+v", r.Result)
	}
	var volumes []any
	for _, image := range images {
		volumes = append(volumes, object{"name": "v", "image": object{"reference": image}})
	}
	pod := podOf()
	pod["spec"] = object{"volumes": volumes}
	r = reviewPod(t, w, pod)
	if len(r.Result.Details.Causes) != 1 || r.Result.Details.Causes[0].Field != "spec.volumes[256].image.reference" {
		t.Errorf("259 volumes: %+v", r.Result)
	}
}

// TestAnObjectThatIsNull is none: there is nothing to check, and no image was there before.
func TestAnObjectThatIsNull(t *testing.T) {
	w, _ := newWebhook(t, admission.PolicyOptions{})
	for _, operation := range []string{"CREATE", "UPDATE"} {
		rec := post(w, strings.NewReader(reviewOf(t, "", "Pod", nil, object{"operation": operation, "object": nil})))
		if rec.Code != http.StatusBadRequest || rec.Body.String() != "the request has no object (review u-1)\n" {
			t.Errorf("%s: %d %s", operation, rec.Code, rec.Body)
		}
	}
	r := answer(t, w, reviewOf(t, "", "Pod", podOf("nginx"), object{"operation": "UPDATE", "oldObject": nil}))
	if r.Allowed {
		t.Errorf("an update of null: %+v", r)
	}
}

func TestReviewRefusesMalformedObjects(t *testing.T) {
	w, seen := newWebhook(t, admission.PolicyOptions{})
	pod := metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}
	good := runtime.RawExtension{Raw: encode(t, podOf("nginx"))}
	bad := runtime.RawExtension{Raw: []byte(`{"spec":{},"spec":{}}`)}
	for _, r := range []admissionv1.AdmissionRequest{{Object: bad}, {Object: good, OldObject: bad}, {}} {
		r.Kind, r.Operation = pod, admissionv1.Update
		if response, err := w.Review(t.Context(), &r); err == nil || response != nil ||
			!strings.Contains(err.Error(), "object") || !admission.Malformed(err) {
			t.Errorf("got %+v, %v", response, err)
		}
	}
	if len(*seen) > 0 {
		t.Errorf("observed %v", *seen)
	}
	r, err := w.Review(t.Context(), &admissionv1.AdmissionRequest{Kind: metav1.GroupVersionKind{Kind: "X"},
		Object: bad})
	if err != nil || !r.Allowed {
		t.Errorf("another kind: %+v, %v", r, err)
	}
}

func FuzzReview(f *testing.F) {
	files, err := filepath.Glob("testdata/pod*[a-z].json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.json") {
			continue
		}
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(compact(f, body))
	}
	f.Add([]byte(reviewOf(f, "apps", "Deployment", workload("Deployment", podOf("nginx", "auto")), nil)))
	f.Add([]byte(reviewOf(f, "", "Pod", podOf("NGINX", "sha256:"+hex64),
		object{"operation": "UPDATE", "oldObject": podOf("x")})))
	w := newHook(admission.Options{Images: newRegistry(f, held),
		Policy: newPolicy(f, admission.PolicyOptions{AllowPrefixes: []string{"docker.io"}})})
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := post(w, bytes.NewReader(body))
		switch {
		case rec.Code == http.StatusOK:
			verify(t, body, rec.Body.Bytes())
		case rec.Code < 400 || rec.Code > 499:
			t.Errorf("status %d: %s", rec.Code, rec.Body)
		}
	})
}

func compact(tb testing.TB, body []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, body); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// discard is a ResponseWriter that drops the answer.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// BenchmarkValidate measures the whole handler for a pod with three containers, as the API server sends it. The
// registry holds all their images.
func BenchmarkValidate(b *testing.B) {
	var review admissionv1.AdmissionReview // whose members have the order in which the API server sends them
	var pod corev1.Pod
	body, err := os.ReadFile("testdata/pod-create-allowed.json")
	if err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(body, &review); err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
		b.Fatal(err)
	}
	third := pod.Spec.Containers[0]
	third.Image = host + "/app:1"
	pod.Spec.Containers = append(pod.Spec.Containers, third)
	review.Request.Object.Raw = encode(b, pod)
	body = encode(b, review)

	w := newHook(admission.Options{Images: newRegistry(b, held), Policy: newPolicy(b, admission.PolicyOptions{})})
	r := httptest.NewRequest(http.MethodPost, "/validate?timeout=5s", nil)
	r.Header.Set("Content-Type", "application/json")
	rw := discard{http.Header{}}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		w.ServeHTTP(rw, r)
	}
}

// TestAudit checks that in audit mode objects are allowed, with warnings that name what would be denied.
func TestAudit(t *testing.T) {
	audit := true
	var seen admission.Decision
	w := newHook(admission.Options{
		Images: newRegistry(t, held), Policy: newPolicy(t, admission.PolicyOptions{}),
		Audit: func() bool { return audit }, Observe: func(_ context.Context, d admission.Decision) { seen = d },
	})
	review := reviewOf(t, "", "Pod", object{"spec": object{"containers": []object{{"image": "docker.io/nginx"}}}}, nil)
	r := answer(t, w, review)
	const sentence = "Remote image docker.io/nginx disallowed as not contained in this registry and not in allow list"
	if !r.Allowed || len(r.Warnings) == 0 || r.Warnings[0] != sentence || r.AuditAnnotations["decision"] != "warned" ||
		!seen.Allowed || !slices.Equal(seen.Denied, []string{sentence}) {
		t.Errorf("%+v, %+v", r, seen)
	}
	audit = false
	if r := answer(t, w, review); r.Allowed {
		t.Error("the audit mode is over, and the object is allowed")
	}
}
