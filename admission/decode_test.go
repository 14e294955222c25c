package admission

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

func isChecked(k groupKind) bool {
	_, ok := kinds[k]
	return ok
}

// apiObject is what is decoded of an object, in the API's types.
type apiObject struct {
	meta *metav1.ObjectMeta
	pod  *corev1.PodSpec
}

// decodeWithAPI decodes a body as the API server decodes its objects. It returns nil if that fails.
func decodeWithAPI(body []byte) *admissionv1.AdmissionReview {
	var v admissionv1.AdmissionReview
	if _, err := kjson.UnmarshalStrict(body, &v); err != nil || v.Request == nil {
		return nil
	}
	return &v
}

func decodeObjectWithAPI(kind groupKind, raw []byte) *apiObject {
	read := func(o any, meta *metav1.ObjectMeta, pod *corev1.PodSpec) *apiObject {
		if kjson.UnmarshalCaseSensitivePreserveInts(raw, o) != nil {
			return nil
		}
		return &apiObject{meta, pod}
	}
	var (
		pod     corev1.Pod
		podTmpl corev1.PodTemplate
		rc      corev1.ReplicationController
		deploy  appsv1.Deployment
		rs      appsv1.ReplicaSet
		sts     appsv1.StatefulSet
		ds      appsv1.DaemonSet
		job     batchv1.Job
		cron    batchv1.CronJob
	)
	rc.Spec.Template = &corev1.PodTemplateSpec{}
	switch kind {
	case groupKind{"", "Pod"}:
		return read(&pod, &pod.ObjectMeta, &pod.Spec)
	case groupKind{"", "PodTemplate"}:
		return read(&podTmpl, &podTmpl.ObjectMeta, &podTmpl.Template.Spec)
	case groupKind{"", "ReplicationController"}:
		o := read(&rc, &rc.ObjectMeta, nil)
		if o != nil {
			if o.pod = new(corev1.PodSpec); rc.Spec.Template != nil {
				o.pod = &rc.Spec.Template.Spec
			}
		}
		return o
	case groupKind{"apps", "Deployment"}:
		return read(&deploy, &deploy.ObjectMeta, &deploy.Spec.Template.Spec)
	case groupKind{"apps", "ReplicaSet"}:
		return read(&rs, &rs.ObjectMeta, &rs.Spec.Template.Spec)
	case groupKind{"apps", "StatefulSet"}:
		return read(&sts, &sts.ObjectMeta, &sts.Spec.Template.Spec)
	case groupKind{"apps", "DaemonSet"}:
		return read(&ds, &ds.ObjectMeta, &ds.Spec.Template.Spec)
	case groupKind{"batch", "Job"}:
		return read(&job, &job.ObjectMeta, &job.Spec.Template.Spec)
	case groupKind{"batch", "CronJob"}:
		return read(&cron, &cron.ObjectMeta, &cron.Spec.JobTemplate.Spec.Template.Spec)
	}
	panic("kind " + kind.Kind)
}

// images lists the images in the order of [podSpec.images].
func (o *apiObject) images() (list []string) {
	for _, c := range o.pod.Containers {
		list = append(list, c.Image)
	}
	for _, c := range o.pod.InitContainers {
		list = append(list, c.Image)
	}
	for _, c := range o.pod.EphemeralContainers {
		list = append(list, c.Image)
	}
	for _, v := range o.pod.Volumes {
		if v.Image != nil {
			list = append(list, v.Image.Reference)
		}
	}
	return list
}

func (o *apiObject) summary() string {
	m := o.meta
	_, mirror := m.Annotations["kubernetes.io/config.mirror"]
	return fmt.Sprintf("%q %q %t %t %t %q", m.Name, m.GenerateName, m.DeletionTimestamp != nil, mirror,
		metav1.GetControllerOfNoCopy(&metav1.ObjectMeta{OwnerReferences: m.OwnerReferences}) != nil, o.images())
}

func (o *object) summary() string {
	m := &o.Metadata
	var images []string
	for _, image := range o.Pod.images() {
		images = append(images, image)
	}
	return fmt.Sprintf("%q %q %t %t %t %q",
		m.Name, m.GenerateName, m.Deleted, m.Mirror, m.Controlled, images)
}

func (q *request) summary() string {
	return fmt.Sprintf("%q %q %q %q %q %q %q %t %q %t",
		q.UID, q.Kind, q.SubResource, q.Name, q.Namespace, q.User.Name, q.Operation, q.DryRun, q.Kind, q.User.IsNode)
}

// decodeAndCompare decodes a body, and checks that the result is what the API's types have, and that nothing is refused
// that they accept. understood reports whether the API's types can hold the whole review.
func decodeAndCompare(t *testing.T, body []byte) (v *review, understood bool) {
	t.Helper()
	v, err := decodeReview(body)
	api := decodeWithAPI(body)
	if api == nil {
		return v, false
	}
	r := api.Request
	kind := groupKind{r.Kind.Group, r.Kind.Kind}
	accepted := jsontext.Value(body).IsValid() && supported[api.APIVersion] && api.Kind == "AdmissionReview" &&
		r.UID != "" && len(r.UID) <= maxUID
	if v != nil {
		want := request{
			UID: string(r.UID), Kind: kind, SubResource: r.SubResource, Name: r.Name, Namespace: r.Namespace,
			User:      user{r.UserInfo.Username, slices.Contains(r.UserInfo.Groups, nodeGroup)},
			Operation: string(r.Operation), DryRun: r.DryRun != nil && *r.DryRun,
		}
		if got := v.Request.summary(); got != want.summary() || v.APIVersion != api.APIVersion || v.Kind != api.Kind {
			t.Fatalf("got %s\nthe API's types have %s\n%q", got, want.summary(), body)
		}
	}
	if isChecked(kind) {
		understood = true
		for _, raw := range [][]byte{r.Object.Raw, r.OldObject.Raw} {
			understood = compareObject(t, kind, raw, v != nil) && understood
		}
	}
	if v == nil && accepted && (understood || !isChecked(kind)) {
		t.Fatalf("%v, and the API's types accept it\n%q", err, body)
	}
	return v, understood && v != nil
}

// compareObject decodes an object of a kind whose images are checked, and verifies that the result is what the API's
// type has. valid means that the text is part of a review that was accepted. It reports whether the API's type can hold
// the object.
func compareObject(t *testing.T, kind groupKind, raw []byte, valid bool) bool {
	t.Helper()
	if len(raw) == 0 || string(raw) == "null" {
		return true
	}
	got, err := decodeObject(kinds[kind], "", raw)
	want := decodeObjectWithAPI(kind, raw)
	switch {
	case want == nil:
		return false
	case err != nil && valid:
		t.Fatalf("%v, and the API's type accepts it\n%q", err, raw)
	case err == nil && got.summary() != want.summary():
		t.Fatalf("got %s\nthe API's type has %s\n%q", got.summary(), want.summary(), raw)
	}
	return true
}

// reviews are those of testdata, and some that are made to be read wrongly.
func reviews(tb testing.TB) (list [][]byte) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		tb.Fatal("no files", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.json") {
			continue
		}
		body, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		list = append(list, body)
	}
	const start = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",` +
		`"operation":"CREATE",`
	pod := func(object string) string {
		return start + `"kind":{"group":"","kind":"Pod"},"object":` + object + `}}`
	}
	for _, s := range []string{
		pod(`{"spec":{"containers":[{"image":"a"}],"volumes":[{"image":{"reference":"v"}},{"image":{}},` +
			`{"image":null},null]}}`),
		pod(`{"spec":{"containers":[{"image":"a","image":"b"}]}}`),
		pod(`{"spec":{"containers":[{"image":"a","\u0069mage":"b"}]}}`),
		pod(`{"spec":{"containers":[{"\u0069mage":"\u00e9\ud83d\ude00\n"}]}}`),
		pod(`{"spec":{"containers":[{"image":"a","Image":"b"}],"Containers":[{"image":"c"}]}}`),
		pod(`{"spec":{"containers":[{"image":"\ud800"}]}}`),
		pod(`{"spec":{"containers":[{"image":"é"}]},"é":1,"\u00e9":2}`),
		pod(`{"spec":{"containers":[{"image":null}],"containers ":[]}}`),
		pod(`{"spec":{"containers":{"image":"a"}}}`),
		pod(`{"spec":null,"metadata":{"ownerReferences":[{"controller":true},{"controller":null}],` +
			`"annotations":{"kubernetes.io/config.mirror":""}}}`),
		pod(`{"metadata":{"deletionTimestamp":"2026-11-20T09:14:03Z"}} `) + "\r\n\t ",
		pod(`{}`) + `x`,
		pod("{\"a\":\"\x00\"}"),
		pod("{\"a\":\"\x7f\",\"b\":\"12345678\xff\"}"),
		pod(`[-0,0.5,1e5,1E+5,-1.25e-07]`),
		pod(`{"a":[01]}`), pod(`{"a":1.}`), pod(`{"a":-}`), pod(`{"a":1e}`), pod(`{"a":.5}`), pod(`{"a":+1}`),
		pod(`{"a":tru}`), pod(`{"a":1,}`), pod(`{"a" 1}`), pod(`{a:1}`), pod(`{"a":[1 2]}`), pod(`{"a":[,]}`),
		start + `"kind":{"kind":"Other"},"object":{"spec":7}}}`,
		start + `"kind":{"kind":"Other"},"object":7,"dryRun":7}}`,
		start + `"object":{"template":{"spec":{"initContainers":[{"image":"i"}]}}},"kind":{"kind":"PodTemplate"}}}`,
		start + `"object":{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"image":"i"}]}}}}}},` +
			`"kind":{"group":"batch","kind":"CronJob"}}}`,
		start + `"object":{"spec":{"template":null}},"kind":{"kind":"ReplicationController"}}}`,
		`null`, `7`, `"x"`, `{}`, ``, ` `, `{"request":null}`,
	} {
		list = append(list, []byte(s))
	}
	return list
}

func FuzzDecodeReview(f *testing.F) {
	for _, body := range reviews(f) {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) { decodeAndCompare(t, body) })
}

// tree is a JSON value that can be bent.
type tree struct {
	kind byte // {, [, or 0 for a scalar
	text string
	keys []string // quoted
	kids []*tree
}

func parse(tb testing.TB, dec *jsontext.Decoder) *tree {
	tb.Helper()
	switch dec.PeekKind() {
	case '{', '[':
		tok, err := dec.ReadToken()
		if err != nil {
			tb.Fatal(err)
		}
		n := &tree{kind: byte(tok.Kind())}
		for dec.PeekKind() != '}' && dec.PeekKind() != ']' {
			if n.kind == '{' {
				key, err := dec.ReadValue()
				if err != nil {
					tb.Fatal(err)
				}
				n.keys = append(n.keys, string(key))
			}
			n.kids = append(n.kids, parse(tb, dec))
		}
		if _, err := dec.ReadToken(); err != nil {
			tb.Fatal(err)
		}
		return n
	}
	v, err := dec.ReadValue()
	if err != nil {
		tb.Fatal(err)
	}
	return &tree{text: string(v)}
}

func (n *tree) nodes(list []*tree) []*tree {
	list = append(list, n)
	for _, k := range n.kids {
		list = k.nodes(list)
	}
	return list
}

func (n *tree) clone() *tree {
	c := *n
	c.keys, c.kids = slices.Clone(n.keys), nil
	for _, k := range n.kids {
		c.kids = append(c.kids, k.clone())
	}
	return &c
}

// write writes the value with white space and escapes here and there.
func (n *tree) write(b *bytes.Buffer, r *rand.Rand) {
	space := func() {
		if r.IntN(20) == 0 {
			b.WriteString([]string{" ", "\n", "\t", "\r\n  "}[r.IntN(4)])
		}
	}
	text := func(s string) {
		if r.IntN(20) > 0 || len(s) < 3 || s[0] != '"' || s[1] >= 0x80 || s[1] == '\\' {
			b.WriteString(s)
			return
		}
		fmt.Fprintf(b, `"\u%04x%s`, s[1], s[2:])
	}
	space()
	defer space()
	if n.kind == 0 {
		text(n.text)
		return
	}
	b.WriteByte(n.kind)
	for i, k := range n.kids {
		if i > 0 {
			b.WriteByte(',')
		}
		if n.kind == '{' {
			space()
			text(n.keys[i])
			space()
			b.WriteByte(':')
		}
		k.write(b, r)
	}
	b.WriteByte(n.kind + 2)
}

// bend changes one thing.
func (n *tree) bend(r *rand.Rand) {
	names := strings.Fields("apiVersion kind request uid operation object oldObject metadata name generateName " +
		"annotations spec template jobTemplate containers initContainers ephemeralContainers volumes image reference " +
		"ownerReferences controller userInfo groups dryRun group")
	scalars := []string{"null", "true", "false", "0", "-1.5e3", `""`, `"Pod"`, `"apps"`, `"Deployment"`, `"x"`, `"é"`,
		`"\ud83d\ude00"`, `"\ud83d"`, "\"\xff\"", `{}`, `[]`, `[null]`, `[{}]`, `"UPDATE"`, "01", "nul", ""}
	all := n.nodes(nil)
	at, other := all[r.IntN(len(all))], all[r.IntN(len(all))]
	i := 0
	if len(at.kids) > 0 {
		i = r.IntN(len(at.kids))
	}
	isObject := at.kind == '{' && len(at.kids) > 0
	switch r.IntN(8) {
	case 0:
		*at = tree{text: scalars[r.IntN(len(scalars))]}
	case 1:
		*at = *other.clone()
	case 2:
		if isObject {
			at.keys[i] = strconv.Quote(names[r.IntN(len(names))])
		}
	case 3:
		if isObject {
			at.keys[i] = strings.ToUpper(at.keys[i][:2]) + at.keys[i][2:]
		}
	case 4:
		if isObject { // a duplicate name
			at.keys, at.kids = append(at.keys, at.keys[i]), append(at.kids, at.kids[i].clone())
		}
	case 5:
		if isObject {
			at.keys, at.kids = append(at.keys, strconv.Quote(names[r.IntN(len(names))])), append(at.kids, other.clone())
		}
	case 6:
		if len(at.kids) > 0 {
			if at.kids = slices.Delete(at.kids, i, i+1); isObject {
				at.keys = slices.Delete(at.keys, i, i+1)
			}
		}
	case 7:
		for j := range 20 { // many members
			if at.kind == '{' {
				at.keys, at.kids = append(at.keys, fmt.Sprintf(`"k%d"`, j)), append(at.kids, &tree{text: "0"})
			}
		}
	}
}

// TestReviewsAreDecodedAsTheAPIServerDoes changes reviews in many ways, and decodes each into our types and the API's.
func TestReviewsAreDecodedAsTheAPIServerDoes(t *testing.T) {
	var whole []*tree
	for _, body := range reviews(t) {
		decodeAndCompare(t, body)
		if jsontext.Value(body).IsValid() {
			whole = append(whole, parse(t, jsontext.NewDecoder(bytes.NewReader(body))))
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	accepted, understood := 0, 0
	const tries = 4_000
	for range tries {
		n := whole[r.IntN(len(whole))].clone()
		for range r.IntN(4) {
			n.bend(r)
		}
		var b bytes.Buffer
		n.write(&b, r)
		v, ok := decodeAndCompare(t, b.Bytes())
		if v != nil {
			accepted++
		}
		if ok {
			understood++
		}
	}
	t.Logf("of %d, %d were accepted, and %d fit into the API's types", tries, accepted, understood)
	if accepted < tries/5 || understood < tries/10 || accepted == tries {
		t.Errorf("of %d, %d were accepted, and %d fit into the API's types", tries, accepted, understood)
	}
}

// TestDepth checks that nesting is bounded, so that no review can exhaust the stack.
func TestDepth(t *testing.T) {
	for depth, accepted := range map[int]bool{9_998: true, 10_001: false, 100_000: false} {
		for _, unit := range []string{`[]`, `{"":}`} {
			open, end := unit[:len(unit)-1], unit[len(unit)-1:]
			body := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","x":` + strings.Repeat(open, depth) +
				"0" +
				strings.Repeat(end, depth) + `,"request":{"uid":"u"}}`
			if _, err := decodeReview([]byte(body)); (err == nil) != accepted {
				t.Errorf("%d levels of %s: %v", depth, unit, err)
			}
		}
	}
}

func TestFaultsNameThePath(t *testing.T) {
	const start = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",` +
		`"kind":{"kind":"Pod"},`
	for body, want := range map[string]string{
		``:                             `"unexpected EOF`,
		`{`:                            `"unexpected EOF`,
		`[]`:                           `"an array instead of an object"`,
		`{} x`:                         `"invalid character 'x' after top-level value at byte 3"`,
		`{"a":[0,{"b":1x}]}`:           `"a[1]: invalid character 'x' after object value`,
		`{"a":{"b":"x` + "\n" + `"}}`:  `"a.b: invalid character '\\n' `,
		`{"a":{"b":"x`:                 `"a.b: unexpected EOF`,
		`{"a":{"b":"` + "\xff" + `"}}`: `"a.b: invalid UTF-8`,
		start + `"object":{"spec":{"containers":[{},{"image":7}]}}}}`: `"request.object.spec.containers[1].image: ` +
			`a number instead of a string"`,
		start + `"object":{"spec":{"containers":[{},{"a":1,"a":2}]}}}`: `"request.object.spec.containers[1].a: ` +
			`duplicate object member name`,
		start + `"object":{"spec":{"containers":{}}}}}`: `"request.object.spec.containers: an object ` +
			`instead of an array"`,
		start + `"object":{"metadata":{"ownerReferences":{}}}}}`: `"request.object.metadata.ownerReferences: an ` +
			`object instead of an array"`,
		start + `"object":{"metadata":{"ownerReferences":[{},7]}}}}`: `"request.object.metadata.ownerReferences[1]: ` +
			`a number instead of an object"`,
		start + `"object":7}}`: `"request.object: a number instead of an object"`,
		start + `"userInfo":{"groups":[true]}}}`: `"request.userInfo.groups[0]: ` +
			`a boolean instead of a string"`,
		start + `"dryRun":"true"}}`:                           `"request.dryRun: a string instead of a boolean"`,
		`{"` + strings.Repeat("n", 1000) + `":{"b":x}}`:       `"nnn`,
		strings.Repeat(`{"`+strings.Repeat("n", 90)+`":`, 10): `"nnn`,
	} {
		_, err := decodeReview([]byte(body))
		if err == nil {
			t.Errorf("%.100s: no error", body)
		} else if text := err.Error(); !strings.Contains(text, want) || len(text) > 600 {
			t.Errorf("%.100s: %s, want %s", body, text, want)
		}
	}
}

// TestOnlyWhatTheVerdictDependsOnIsDecoded: of an object that decides nothing, the form does not matter, so that the
// webhook does not stand in the way of a DELETE. The order of the members does not matter either.
func TestOnlyWhatTheVerdictDependsOnIsDecoded(t *testing.T) {
	const good, bad = `{"spec":{"containers":[{"image":"a"}]}}`, `{"spec":7}`
	for _, row := range []struct {
		operation, object, old string
		accepted, new, before  bool // whether the objects are decoded
	}{
		{"CREATE", good, bad, true, true, false},
		{"CREATE", bad, good, false, false, false},
		{"UPDATE", good, good, true, true, true},
		{"UPDATE", good, bad, false, false, false},
		{"UPDATE", bad, good, false, false, false},
		{"DELETE", bad, bad, true, false, false},
		{"CONNECT", bad, bad, true, false, false},
	} {
		decides := `"operation":"` + row.operation + `","kind":{"kind":"Pod"}`
		objects := `"object":` + row.object + `,"oldObject":` + row.old
		for _, members := range []string{decides + "," + objects, objects + "," + decides} {
			v, err := decodeReview(
				[]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",` +
					members + `}}`))
			if (err == nil) != row.accepted {
				t.Errorf("%s: %v", members, err)
			}
			if err == nil && ((v.Request.Object != nil) != row.new || (v.Request.OldObject != nil) != row.before) {
				t.Errorf("%s: %+v, %+v", members, v.Request.Object, v.Request.OldObject)
			}
		}
	}
}

// TestAnObjectOfAnotherKindIsNamed: its metadata is read only where the request has no name, and need not have any
// form.
func TestAnObjectOfAnotherKindIsNamed(t *testing.T) {
	for members, want := range map[string]string{
		`"object":{"metadata":{"generateName":"x-"}}`:            "x-",
		`"name":"","object":{"metadata":{"generateName":"x-"}}`:  "x-",
		`"name":"n","object":{"metadata":{"generateName":"x-"}}`: "none",
		`"object":{"metadata":7}`:                                "none",
		`"object":7`:                                             "none",
		`"object":{}`:                                            "",
		`"dryRun":true`:                                          "none",
	} {
		v, err := decodeReview(
			[]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",` +
				`"operation":"CREATE","kind":{"kind":"Other"},` + members + `}}`))
		if err != nil {
			t.Errorf("%s: %v", members, err)
			continue
		}
		got := "none"
		if o := v.Request.Object; o != nil {
			got = o.Metadata.GenerateName
		}
		if got != want {
			t.Errorf("%s: %q, want %q", members, got, want)
		}
	}
}
