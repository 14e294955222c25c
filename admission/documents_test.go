package admission_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"trow/admission"
)

func describe(d admission.Document) string {
	s := fmt.Sprintf("%d:%d %s %s %s/%s", d.Number, d.Line, d.APIVersion, d.Kind, d.Namespace, d.Name)
	if d.Review == nil {
		s += " skipped"
	}
	if d.Err != nil {
		s += ": " + d.Err.Error()
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
		{"several, with markers in every form", "\ufeff---\n" + pod + "--- # next\n" + service +
			"...\n---\r\n\n---\t\n" +
			pod + "---",
			[]string{"1:1 v1 Pod /p", "2:6 v1 Service web/s skipped", "3:13 v1 Pod /p"}},
		{"a marker with content", "--- {apiVersion: v1, kind: Pod}\n", []string{"1:1 v1 Pod /"}},
		{"text that only looks like a marker", "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    " +
			"b\n----: x\n",
			[]string{"1:1 v1 ConfigMap / skipped"}},
		{"consecutive JSON values", podJSON + "\n" + podJSON, []string{"1:1 v1 Pod /g-", "2:1 v1 Pod /g-"}},
		{"consecutive JSON values before a marker without an end of line", podJSON + podJSON + "\n---",
			[]string{"1:1 v1 Pod /g-", "2:1 v1 Pod /g-"}},
		{"a List", "apiVersion: v1\nkind: List\nitems:\n- " + podJSON +
			"\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n",
			[]string{"1:1 v1 Pod /g-", "1:1 apps/v1 Deployment /d"}},
		{"a typed list", "apiVersion: v1\nkind: PodList\n" +
			"items:\n- {metadata: {name: a}}\n- {apiVersion: v1, kind: Service}\n",
			[]string{"1:1 v1 Pod /a", "1:1 v1 Service / skipped"}},
		{"a typed list of a group", "apiVersion: apps/v1\nkind: DeploymentList\n" +
			"items: [{metadata: {name: d, namespace: web}}]\n",
			[]string{"1:1 apps/v1 Deployment web/d"}},
		{"a list in a List", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: PodList, items: [{}]}]\n",
			[]string{"1:1 v1 Pod /"}},
		{"an empty list in a List", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: PodList, items: []}]\n",
			nil},
		{"an empty list behind a pod in a List", "apiVersion: v1\nkind: List\nitems: [" + podJSON +
			", {apiVersion: v1, kind: List}]\n", []string{"1:1 v1 Pod /g-"}},
		{"a custom kind with no items", "apiVersion: a.b/v1\nkind: Bundle\nmetadata: {name: b}\nitems: []\n",
			[]string{"1:1 a.b/v1 Bundle /b skipped"}},
		{"items of a custom kind", "apiVersion: a.b/v1\nkind: Bundle\nitems: [{apiVersion: v1, kind: Pod}]\n",
			[]string{"1:1 v1 Pod /"}},
		{"a list that has no objects", "apiVersion: a.b/v1\nkind: AllowList\nmetadata: {name: x}\nitems: [a, b]\n",
			[]string{"1:1 a.b/v1 AllowList /x skipped"}},
		{"items that are not objects of the API", "apiVersion: a.b/v1\nkind: Menu\nitems: [{name: soup}]\n",
			[]string{"1:1 a.b/v1 Menu / skipped"}},
		{"an empty List", "apiVersion: v1\nkind: List\nitems: []\n", nil},
		{"a List without items", "apiVersion: v1\nkind: List\n---\napiVersion: v1\nkind: List\nitems: null\n", nil},
		{"a pod with items, which only kubectl takes for a list", pod + "items: [{apiVersion: v1, kind: Service}]\n",
			[]string{"1:1 v1 Service / skipped", "1:1 v1 Pod /p"}},
		{"a custom resource with items and a template", "apiVersion: a.b/v1\nkind: Set\nmetadata: {name: s}\n" +
			"spec: {containers: [{image: x}]}\nitems: [{apiVersion: v1, kind: Pod, metadata: {name: i}}]\n",
			[]string{"1:1 v1 Pod /i", "1:1 a.b/v1 Set /s"}},
		{"a kind of another group", "apiVersion: example.com/v1\nkind: Pod\n",
			[]string{"1:1 example.com/v1 Pod / skipped"}},
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
		{"bad YAML", good + "a: [\n", "2:3: "},
		{"a key twice", good + "a: 1\na: 2\n", `key "a" already set`},
		{"a List of no list", good + "apiVersion: v1\nkind: List\nitems: {a: b}\n", "2:3: the items of a List are not"},
		{"a List of text", good + "apiVersion: v1\nkind: List\nitems: x\n", "2:3: the items of a List are not"},
		{"bad JSON", `{"a":}`, "1:1: "},
		{"a scalar", good + "hello\n", "2:3: not an object"},
		{"a list", "- a\n", "1:1: not an object"},
		{"no kind", "apiVersion: v1\n", "1:1: apiVersion and kind are missing"},
		{"a name that is a number", "apiVersion: v1\nkind: Pod\nmetadata: {name: 1}\n", "1:1: "},
		{"a bad item", "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}, {}]\n",
			"1:1: item 2 of the List: apiVersion and kind are missing"},
		{"an item with half a type", "apiVersion: v1\nkind: PodList\nitems: [{kind: Service}]\n",
			"1:1: item 1 of the PodList: apiVersion and kind are missing"},
		{"the other half", "apiVersion: v1\nkind: PodList\nitems: [{apiVersion: v1}]\n",
			"1:1: item 1 of the PodList: apiVersion and kind are missing"},
		{"bad items of a list in a List",
			"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: PodList, items: [{kind: Pod}, {}, {kind: " +
				"Pod}]}]\n",
			"1:1: item 1 of the List: item 1 of the PodList: apiVersion and kind are missing\n" +
				"1:1: item 1 of the List: item 3 of the PodList: apiVersion and kind are missing\n"},
		{"the second JSON value", `{"apiVersion":"v1","kind":"Pod"}{}`,
			"2:1: apiVersion and kind are missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: after}\n"
			docs, err := admission.ReadDocuments(strings.NewReader(tt.stream + after))
			text := ""
			for _, d := range docs {
				if d.Err != nil {
					text += fmt.Sprintf("%d:%d: %v\n", d.Number, d.Line, d.Err)
				}
			}
			if err != nil || strings.Count(text, "\n") == 0 || !strings.Contains(text, tt.want) {
				t.Errorf("got %q, %v\nwant %s", text, err, tt.want)
			}
			if last := docs[len(docs)-1]; last.Err != nil || last.Name != "after" {
				t.Errorf("the document after it: %+v", last)
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

// TestPodTemplatesAreFoundByShape has kinds that trow check passed as having no images.
func TestPodTemplatesAreFoundByShape(t *testing.T) {
	const containers = `{initContainers: [{image: quay.io/init}], containers: [{name: c, image: quay.io/x}], ` +
		`volumes: [{name: v, image: {reference: quay.io/volume}}]}`
	const three = "quay.io/x quay.io/init quay.io/volume"
	for _, tt := range []struct{ name, object, images, unjudged string }{
		{"an Argo Rollout", "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec: {template: {spec: " + containers +
			"}}",
			three, ""},
		{"a Knative Service", "apiVersion: serving.knative.dev/v1\nkind: Service\n" +
			"spec: {template: {spec: " + containers + "}}", three, ""},
		{"a JobSet", "apiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\nspec: {replicatedJobs: [{template: {spec: " +
			"{template: {spec: " + containers + "}}}}, {template: {spec: {template: {spec: {containers: [{image: " +
			"quay.io/y}]}}}}}]}", "quay.io/x quay.io/init quay.io/y quay.io/volume", ""},
		{"a Deployment of an old group", "apiVersion: extensions/v1beta1\nkind: Deployment\nspec: {template: {spec: " +
			containers + "}}", three, ""},
		{"an operator's kind", "apiVersion: monitoring.coreos.com/v1\nkind: Prometheus\n" +
			"spec: {image: quay.io/p, containers: [{name: c, image: quay.io/x}]}", "quay.io/x", "spec.image"},
		{"other lists of a pod spec, and one that is no list",
			"apiVersion: a.b/v1\nkind: X\nspec: {containers: [{image: " +
				"quay.io/x}], sidecars: [{image: quay.io/s}], volumes: {image: quay.io/v}}", "quay.io/x",
			"spec.sidecars[0].image spec.volumes.image"},
		{"a Workflow", "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\n" +
			"spec: {templates: [{container: {image: quay.io/x}}]}",
			"", "spec.templates[0].container.image"},
		{"an image that is open", "apiVersion: a.b/v1\nkind: X\nspec: {image: '', other: {image: auto}}", "", ""},
		{"an image that is an object", "apiVersion: a.b/v1\nkind: X\nspec: {image: {repository: x, tag: y}}", "",
			"spec.image"},
		{"an empty object", "apiVersion: a.b/v1\nkind: X\nspec: {image: {repository: '', pullPolicy: Always}}", "", ""},
		{"a Cluster of CloudNativePG", "apiVersion: postgresql.cnpg.io/v1\nkind: Cluster\nspec: {imageName: " +
			"quay.io/p, imagePullPolicy: Always, imagePullSecrets: [{name: s}]}", "", "spec.imageName"},
		{"a list of images", "apiVersion: a.b/v1\nkind: X\nspec: {images: [x, {name: b}], base_image: z}", "",
			"spec.base_image spec.images[0] spec.images[1]"},
		{"a template whose operator adds the container", "apiVersion: a.b/v1\nkind: X\nspec: {podTemplate: {spec: " +
			"{initContainers: [{image: quay.io/init}], containers: [{name: c}]}}}", "quay.io/init", ""},
		{"a Rollout of a workload", "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\n" +
			"spec: {workloadRef: {apiVersion: apps/v1, kind: Deployment, name: x}}", "", ""},
		{"a status", "apiVersion: a.b/v1\nkind: X\nstatus: {image: x}", "", ""},
		{"a kind of Kubernetes", "apiVersion: v1\nkind: ConfigMap\ndata: {image: x}", "", ""},
		{"a kind of a group without a dot", "apiVersion: apps/v1\nkind: ControllerRevision\ndata: {image: x}", "", ""},
		{"a kind of a group of Kubernetes", "apiVersion: networking.k8s.io/v1\nkind: Ingress\nspec: {image: x}", "",
			""},
		{"a kind of a group of its projects", "apiVersion: jobset.x-k8s.io/v1\nkind: X\nspec: {image: x}", "",
			"spec.image"},
		{"a group without a version", "apiVersion: a.b\nkind: X\nspec: {image: x}", "", ""},
	} {
		docs, err := admission.ReadDocuments(strings.NewReader(tt.object))
		if err != nil || len(docs) != 1 || docs[0].Err != nil {
			t.Fatal(tt.name, docs, err)
		}
		d, images := docs[0], ""
		if d.Review != nil {
			w, seen := newWebhook(t, admission.PolicyOptions{EnforceTemplates: true})
			if r, err := w.Review(t.Context(), d.Review.Request); err != nil || r.Allowed {
				t.Errorf("%s: %+v, %v", tt.name, r, err)
			}
			var list []string
			for _, v := range (*seen)[0].Verdicts {
				list = append(list, v.Image)
			}
			images = strings.Join(list, " ")
		}
		if sorted(images) != sorted(tt.images) || strings.Join(d.NotJudged, " ") != tt.unjudged {
			t.Errorf("%s: images %q, not judged %q", tt.name, images, d.NotJudged)
		}
	}
}

func sorted(words string) string {
	list := strings.Fields(words)
	slices.Sort(list)
	return strings.Join(list, " ")
}
