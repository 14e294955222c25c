package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// The reviews of libraryReview are what is read of a review in the form that a library reads: it compares names exactly,
// and takes no duplicate names and no invalid UTF-8.
type (
	libraryHeader struct {
		UID  string `json:"uid"`
		Kind struct {
			Group string `json:"group"`
			Kind  string `json:"kind"`
		} `json:"kind"`
		SubResource string `json:"subResource"`
		Name        string `json:"name"`
		Namespace   string `json:"namespace"`
		Operation   string `json:"operation"`
		UserInfo    struct {
			Username string   `json:"username"`
			Groups   []string `json:"groups"`
		} `json:"userInfo"`
		DryRun bool `json:"dryRun"`
	}
	libraryRequest struct {
		libraryHeader
		Object    *libraryObject `json:"object"`
		OldObject *libraryObject `json:"oldObject"`
	}
	libraryReview struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Request    *libraryRequest `json:"request"`
	}
	libraryForeign struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Request    *libraryHeader `json:"request"`
	}
	libraryObject struct {
		Metadata struct {
			Name              string  `json:"name"`
			GenerateName      string  `json:"generateName"`
			DeletionTimestamp *string `json:"deletionTimestamp"`
			Annotations       struct {
				Mirror aString `json:"kubernetes.io/config.mirror"`
			} `json:"annotations"`
			OwnerReferences []struct {
				Controller bool `json:"controller"`
			} `json:"ownerReferences"`
		} `json:"metadata"`
		Spec struct {
			libraryPod
			Template    libraryTemplate `json:"template"`
			JobTemplate struct {
				Spec struct {
					Template libraryTemplate `json:"template"`
				} `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
		Template libraryTemplate `json:"template"`
	}
	libraryTemplate struct {
		Spec libraryPod `json:"spec"`
	}
	libraryPod struct {
		Containers          []libraryContainer `json:"containers"`
		InitContainers      []libraryContainer `json:"initContainers"`
		EphemeralContainers []libraryContainer `json:"ephemeralContainers"`
		Volumes             []struct {
			Image *struct {
				Reference string `json:"reference"`
			} `json:"image"`
		} `json:"volumes"`
	}
	libraryContainer struct {
		Image string `json:"image"`
	}
)

// aString is true if there is a string or null, as of an annotation: null is an empty one.
type aString bool

func (a *aString) UnmarshalJSON(b []byte) error {
	if b[0] != '"' && b[0] != 'n' {
		return errors.New("no string")
	}
	*a = true
	return nil
}

// decodeWithLibrary is decodeReview by a library.
func decodeWithLibrary(body []byte) (*review, error) {
	var l libraryReview
	err := jsonv2.Unmarshal(body, &l)
	if _, ok := errors.AsType[*jsonv2.SemanticError](err); ok {
		var f libraryForeign
		if jsonv2.Unmarshal(body, &f) != nil || f.Request == nil || isJudged(groupKind(f.Request.Kind)) {
			return nil, err
		}
		l, err = libraryReview{f.APIVersion, f.Kind, &libraryRequest{libraryHeader: *f.Request}}, nil
	}
	switch {
	case err != nil:
		return nil, err
	case !supported[l.APIVersion] || l.Kind != "AdmissionReview" || l.Request == nil || l.Request.UID == "" || len(l.Request.UID) > maxUID:
		return nil, errors.New("it is no review")
	}
	q := l.Request
	return &review{APIVersion: l.APIVersion, Kind: l.Kind, Request: &request{
		UID: q.UID, Kind: groupKind(q.Kind), SubResource: q.SubResource, Name: q.Name, Namespace: q.Namespace, Operation: q.Operation,
		User: q.UserInfo.Username, Groups: q.UserInfo.Groups, DryRun: q.DryRun, Object: q.Object.object(), OldObject: q.OldObject.object(),
	}}, nil
}

func isJudged(k groupKind) bool {
	_, ok := kinds[k]
	return ok
}

func (l *libraryObject) object() *object {
	if l == nil {
		return nil
	}
	m := &l.Metadata
	o := &object{Metadata: metadata{
		Name: m.Name, GenerateName: m.GenerateName, Deleting: m.DeletionTimestamp != nil, Mirror: bool(m.Annotations.Mirror),
	}}
	for _, r := range m.OwnerReferences {
		o.Metadata.Controlled = o.Metadata.Controlled || r.Controller
	}
	o.Spec.podSpec = l.Spec.libraryPod.spec()
	o.Spec.Template.Spec = l.Spec.Template.Spec.spec()
	o.Spec.JobTemplate.Spec = l.Spec.JobTemplate.Spec.Template.Spec.spec()
	o.Template.Spec = l.Template.Spec.spec()
	return o
}

func (l libraryPod) spec() podSpec {
	containers := func(list []libraryContainer) (to []container) {
		for _, c := range list {
			to = append(to, container(c))
		}
		return to
	}
	p := podSpec{containers(l.Containers), containers(l.InitContainers), containers(l.EphemeralContainers), nil}
	for _, v := range l.Volumes {
		var to volume
		if v.Image != nil {
			to.Image = &v.Image.Reference
		}
		p.Volumes = append(p.Volumes, to)
	}
	return p
}

// compareWithLibrary checks that a body is read and refused as the library does it.
func compareWithLibrary(t *testing.T, body []byte) *review {
	t.Helper()
	got, err := decodeReview(body)
	want, wantErr := decodeWithLibrary(body)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("decoded with %v, by the library with %v:\n%q", err, wantErr, body)
	}
	if err != nil {
		return nil
	}
	if !slices.Equal(got.Request.Groups, want.Request.Groups) {
		t.Fatalf("groups %q, by the library %q:\n%q", got.Request.Groups, want.Request.Groups, body)
	}
	g := *got.Request
	g.Groups = want.Request.Groups // nil or empty
	if !reflect.DeepEqual(&g, want.Request) {
		t.Fatalf("got %s\nby the library %s\n%q", show(&g), show(want.Request), body)
	}
	return got
}

func show(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// apiObject is what is read of an object, in the API's types.
type apiObject struct {
	meta *metav1.ObjectMeta
	pod  *corev1.PodSpec
}

// decodeWithAPI reads a body as the API server reads its objects. It is nil if it can not.
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
	return fmt.Sprintf("%q %q %t %t %t %q", m.Name, m.GenerateName, m.DeletionTimestamp != nil, mirror, metav1.GetControllerOfNoCopy(&metav1.ObjectMeta{OwnerReferences: m.OwnerReferences}) != nil, o.images())
}

func (o *object) summary(k groupKind) string {
	m := &o.Metadata
	var images []string
	for _, image := range kinds[k].spec(o).images() {
		images = append(images, image)
	}
	return fmt.Sprintf("%q %q %t %t %t %q", m.Name, m.GenerateName, m.Deleting, m.Mirror, m.Controlled, images)
}

// compareWithAPI checks that what was read of a body is what the API's types have; understood tells whether they can hold
// it all.
func compareWithAPI(t *testing.T, v *review, body []byte) (understood bool) {
	t.Helper()
	api := decodeWithAPI(body)
	if v == nil || api == nil {
		return false
	}
	q, r := v.Request, api.Request
	got := fmt.Sprintf("%q %q %q %q %q %q %q %q %q %t", v.APIVersion, v.Kind, q.UID, q.Kind, q.SubResource, q.Name, q.Namespace, q.User, q.Operation, q.DryRun)
	want := fmt.Sprintf("%q %q %q %q %q %q %q %q %q %t", api.APIVersion, api.Kind, string(r.UID), groupKind{r.Kind.Group, r.Kind.Kind},
		r.SubResource, r.Name, r.Namespace, r.UserInfo.Username, string(r.Operation), r.DryRun != nil && *r.DryRun)
	if got != want || !slices.Equal(q.Groups, r.UserInfo.Groups) {
		t.Fatalf("got %s %q\nthe API's types have %s %q\n%q", got, q.Groups, want, r.UserInfo.Groups, body)
	}
	if !isJudged(q.Kind) {
		return false
	}
	understood = true
	for _, o := range []struct {
		got *object
		raw []byte
	}{{q.Object, r.Object.Raw}, {q.OldObject, r.OldObject.Raw}} {
		if o.got == nil {
			if len(o.raw) > 0 && string(o.raw) != "null" {
				t.Fatalf("an object was not seen\n%q", body)
			}
			continue
		}
		want := decodeObjectWithAPI(q.Kind, o.raw)
		if want == nil {
			understood = false
			continue
		}
		if got, want := o.got.summary(q.Kind), want.summary(); got != want {
			t.Fatalf("got %s\nthe API's types have %s\n%q", got, want, body)
		}
	}
	return understood
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
	const start = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE",`
	pod := func(object string) string {
		return start + `"kind":{"group":"","kind":"Pod"},"object":` + object + `}}`
	}
	for _, s := range []string{
		pod(`{"spec":{"containers":[{"image":"a"}],"volumes":[{"image":{"reference":"v"}},{"image":{}},{"image":null},null]}}`),
		pod(`{"spec":{"containers":[{"image":"a","image":"b"}]}}`),
		pod(`{"spec":{"containers":[{"image":"a","\u0069mage":"b"}]}}`),
		pod(`{"spec":{"containers":[{"\u0069mage":"\u00e9\ud83d\ude00\n"}]}}`),
		pod(`{"spec":{"containers":[{"image":"a","Image":"b"}],"Containers":[{"image":"c"}]}}`),
		pod(`{"spec":{"containers":[{"image":"\ud800"}]}}`),
		pod(`{"spec":{"containers":[{"image":"é"}]},"é":1,"\u00e9":2}`),
		pod(`{"spec":{"containers":[{"image":null}],"containers ":[]}}`),
		pod(`{"spec":{"containers":{"image":"a"}}}`),
		pod(`{"spec":null,"metadata":{"ownerReferences":[{"controller":true},{"controller":null}],"annotations":{"kubernetes.io/config.mirror":""}}}`),
		pod(`{"metadata":{"deletionTimestamp":"2026-11-20T09:14:03Z"}} `) + "\r\n\t ",
		pod(`{}`) + `x`,
		pod("{\"a\":\"\x00\"}"),
		pod("{\"a\":\"\x7f\",\"b\":\"12345678\xff\"}"),
		pod(`[-0,0.5,1e5,1E+5,-1.25e-07]`),
		pod(`{"a":[01]}`), pod(`{"a":1.}`), pod(`{"a":-}`), pod(`{"a":1e}`), pod(`{"a":.5}`), pod(`{"a":+1}`), pod(`{"a":tru}`), pod(`{"a":1,}`), pod(`{"a" 1}`), pod(`{a:1}`), pod(`{"a":[1 2]}`), pod(`{"a":[,]}`),
		start + `"kind":{"kind":"Other"},"object":{"spec":7}}}`,
		start + `"kind":{"kind":"Other"},"object":7,"dryRun":7}}`,
		start + `"object":{"template":{"spec":{"initContainers":[{"image":"i"}]}}},"kind":{"kind":"PodTemplate"}}}`,
		start + `"object":{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"containers":[{"image":"i"}]}}}}}},"kind":{"group":"batch","kind":"CronJob"}}}`,
		start + `"object":{"spec":{"template":null}},"kind":{"kind":"ReplicationController"}}}`,
		`null`, `7`, `"x"`, `{}`, ``, ` `, `{"request":null}`,
	} {
		list = append(list, []byte(s))
	}
	return list
}

func FuzzScanner(f *testing.F) {
	for _, body := range reviews(f) {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) { compareWithAPI(t, compareWithLibrary(t, body), body) })
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
	names := strings.Fields("apiVersion kind request uid operation object oldObject metadata name generateName annotations spec template jobTemplate containers initContainers ephemeralContainers volumes image reference ownerReferences controller userInfo groups dryRun group")
	scalars := []string{"null", "true", "false", "0", "-1.5e3", `""`, `"Pod"`, `"apps"`, `"Deployment"`, `"x"`, `"é"`, `"\ud83d\ude00"`, `"\ud83d"`, "\"\xff\"", `{}`, `[]`, `[null]`, `[{}]`, `"UPDATE"`, "01", "nul", ""}
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
		for j := range 20 { // more than are compared one by one
			if at.kind == '{' {
				at.keys, at.kids = append(at.keys, fmt.Sprintf(`"k%d"`, j)), append(at.kids, &tree{text: "0"})
			}
		}
	}
}

// TestReviewsAreReadAsOthersReadThem: reviews are bent in many ways, and read by the scanner, by a library and into the
// API's types.
func TestReviewsAreReadAsOthersReadThem(t *testing.T) {
	var whole []*tree
	for _, body := range reviews(t) {
		compareWithAPI(t, compareWithLibrary(t, body), body)
		if jsontext.Value(body).IsValid() {
			whole = append(whole, parse(t, jsontext.NewDecoder(bytes.NewReader(body))))
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	read, understood := 0, 0
	const tries = 4_000
	for range tries {
		n := whole[r.IntN(len(whole))].clone()
		for range r.IntN(4) {
			n.bend(r)
		}
		var b bytes.Buffer
		n.write(&b, r)
		v := compareWithLibrary(t, b.Bytes())
		if v != nil {
			read++
		}
		if compareWithAPI(t, v, b.Bytes()) {
			understood++
		}
	}
	t.Logf("of %d, %d were reviews, and %d good for the API's types", tries, read, understood)
	if read < tries/5 || understood < tries/10 || read == tries {
		t.Errorf("of %d, %d were reviews, and %d good for the API's types", tries, read, understood)
	}
}

// TestDepth: as many levels as the library takes, and no more.
func TestDepth(t *testing.T) {
	for _, depth := range []int{9_990, 9_998, 9_999, 10_000, 10_001, 20_000} {
		for _, unit := range []string{`[]`, `{"":}`} {
			open, end := unit[:len(unit)-1], unit[len(unit)-1:]
			body := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","x":` + strings.Repeat(open, depth) + "0" + strings.Repeat(end, depth) + `,"request":{"uid":"u"}}`
			compareWithLibrary(t, []byte(body))
		}
	}
}

// TestFaultsNameThePlace, wherever it is.
func TestFaultsNameThePlace(t *testing.T) {
	const start = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","kind":{"kind":"Pod"},`
	const end = "\x00" // nothing follows
	for body, want := range map[string]string{
		``:                             "it ends early, before a value",
		`{`:                            "it ends early, before a name",
		`[]`:                           "an array instead of an object",
		`{} x`:                         "'x' at byte 3, instead of the end",
		`{"a":[0,{"b":1x}]}`:           "'x' at byte 14, instead of a comma or '}', at a[1].b",
		`{"a":{"b":"x` + "\n" + `"}}`:  "at a.b",
		`{"a":{"b":"x`:                 "it ends early, in the string that starts at byte 10, at a.b",
		`{"a":{"b":"` + "\xff" + `"}}`: "UTF-8",
		start + `"object":{"spec":{"containers":[{},{"image":7}]}}}}`:  "a number instead of a string, at request.object.spec.containers[1].image",
		start + `"object":{"spec":{"containers":[{},{"a":1,"a":2}]}}}`: `duplicate name "a", at request.object.spec.containers[1]` + end,
		start + `"dryRun":"true"}}`:                                    "a string instead of a boolean, at request.dryRun",
		`{"` + strings.Repeat("n", 1000) + `":{"b":x}}`:                "instead of a value, at nnn",
	} {
		s := newScanner([]byte(body))
		var v review
		odd := v.read(s)
		s.end()
		if s.fault == nil {
			s.fault = odd
		}
		if s.fault == nil {
			t.Errorf("%.100s: no fault", body)
		} else if text := s.fault.Error(); !strings.Contains(text+end, want) || len(text) > 600 {
			t.Errorf("%.100s: %q, want %q", body, text, want)
		}
	}
}
