package admission

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

// The tests of this file stand on both sides of each bound: the last value that is accepted, and the first that is not.

func TestTheLengthOfAUID(t *testing.T) {
	for n, want := range map[int]bool{0: false, 1: true, maxUID: true, maxUID + 1: false} {
		body := `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"` +
			strings.Repeat("u", n) + `"}}`
		if _, err := decodeReview([]byte(body)); (err == nil) != want {
			t.Errorf("%d bytes: %v, want %v", n, err, want)
		}
	}
}

func TestWhereAQuoteIsCut(t *testing.T) {
	a := func(n int) string { return strings.Repeat("a", n) }
	for s, want := range map[string]string{
		a(100):        `"` + a(100) + `"`,
		a(101):        `"` + a(100) + `"...`,
		a(99) + "éa":  `"` + a(99) + `"...`,       // the second byte of é would be cut off
		a(98) + "€a":  `"` + a(98) + `"...`,       // so would one of the three of €
		a(98) + "éa":  `"` + a(98) + `\u00e9"...`, // here it fits
		a(96) + "😀aa": `"` + a(96) + `\U0001f600"...`,
		a(97) + "😀":   `"` + a(97) + `"...`,
		// Without a beginning of a character it is not searched for ever.
		a(50) + strings.Repeat("\x80", 60): `"` + a(50) + strings.Repeat(`\x80`, 46) + `"...`,
	} {
		if got := quote(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestThePathOfAFault(t *testing.T) {
	n := strings.Repeat("n", 101)
	for _, row := range []struct {
		prefix string
		path   jsontext.Pointer
		want   string
	}{
		{"", "", ""}, {"", "/0", "0"}, {"a", "/0/1", "a[0][1]"}, {"", "/a/0/b", "a[0].b"},
		{"a", "/4294967295", "a[4294967295]"}, {"a", "/4294967296", "a.4294967296"},
		{"", jsontext.Pointer("/" + n[1:]), n[1:]},
		{"", jsontext.Pointer("/" + n), n[1:]}, // 100 bytes of a name
		// A path of 200 bytes goes on, one of 201 does not.
		{strings.Repeat("p", 200), "/a", strings.Repeat("p", 200) + ".a"},
		{strings.Repeat("p", 201), "/a", strings.Repeat("p", 201) + "..."},
	} {
		if got := fieldPath(row.prefix, row.path); got != row.want {
			t.Errorf("%s: %s, want %s", row.path, got, row.want)
		}
	}
}

// TestTheLongerRuleDecides: a rule that denies wins only if it is as long.
func TestTheLongerRuleDecides(t *testing.T) {
	for _, row := range []struct {
		allow, deny []string
		image       string
		want        ruling
	}{
		{nil, nil, "a.b/c", unruled},
		{[]string{"a.b"}, nil, "a.b/c", allowedByRule},
		{nil, []string{"a.b"}, "a.b/c", deniedByRule},
		{[]string{"a.b/c"}, []string{"a.b/c"}, "a.b/c", deniedByRule},
		{[]string{"a.b/c/d"}, []string{"a.b/c"}, "a.b/c/d", allowedByRule},
		{[]string{"a.b/c"}, []string{"a.b/c/d"}, "a.b/c/d", deniedByRule},
		{[]string{"x.y"}, []string{"x.z"}, "a.b/c", unruled},
	} {
		p, err := NewPolicy(PolicyOptions{Allow: row.allow, Deny: row.deny})
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseReference(row.image)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := p.ruling(r); got != row.want {
			t.Errorf("%v and %v: %v, want %v", row.allow, row.deny, got, row.want)
		}
	}
}

func TestTheFirstOfEquallyLongPrefixesIsNamed(t *testing.T) {
	r, err := ParseReference("a.b/c")
	if err != nil {
		t.Fatal(err)
	}
	list := []prefix{{host: "a.b", rule: Rule{"one", ""}}, {host: "a.b", rule: Rule{"two", ""}}}
	if n, rule := longest(list, r); n != 1 || rule.Setting != "one" {
		t.Errorf("%d, %+v", n, rule)
	}
}

func TestAHintListsTagsUpToItsLength(t *testing.T) {
	room := maxWarning - len("tags of r here: "+", ...") // for one tag, beside what stands for more
	tag := func(n int) string { return strings.Repeat("t", n) }
	for _, row := range []struct {
		tags []string
		want string
	}{
		{nil, ""},
		{[]string{"a"}, "tags of r here: a"},
		{[]string{"a", "b", "c", "d", "e"}, "tags of r here: a, b, c, d, e"},
		{[]string{"a", "b", "c", "d", "e", "f"}, "tags of r here: a, b, c, d, e, ..."},
		{[]string{"a", "b", "c", "d", "e", "f", "g"}, "tags of r here: a, b, c, d, e, ..."},
		{[]string{"a", tag(room), "b"}, "tags of r here: a, ..."},
		{[]string{tag(room)}, "tags of r here: " + tag(room)},
		{[]string{tag(room + 1)}, ""},
		{[]string{"a", tag(room - 3)}, "tags of r here: a, " + tag(room-3)},
		{[]string{"a", tag(room - 2)}, "tags of r here: a, ..."},
	} {
		if got := tagList("r", row.tags); got != row.want || len(got) > maxWarning {
			t.Errorf("%q: %q, want %q", row.tags, got, row.want)
		}
	}
}

func TestTheHintAboutAnIncompleteImageFits(t *testing.T) {
	const text = "not all of it is here, nodes get the rest from elsewhere: "
	for n, want := range map[int]bool{maxWarning - len(text): true, maxWarning - len(text) + 1: false} {
		v := Verdict{Image: strings.Repeat("i", n)}
		v.hintElsewhere()
		if got := strings.HasPrefix(v.Hints[0], text); got != want || len(v.Hints[0]) > maxWarning {
			t.Errorf("an image of %d bytes: %q", n, v.Hints)
		}
	}
}

func TestTheLengthOfTheTokenOfCallers(t *testing.T) {
	for n, want := range map[int]bool{15: false, 16: true} {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(strings.Repeat("t", n)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewCallers(CallersOptions{TokenFile: file}); (err == nil) != want {
			t.Errorf("%d characters: %v", n, err)
		}
	}
}

func TestTheLengthOfAReference(t *testing.T) {
	for n, want := range map[int]bool{maxReference: false, maxReference + 1: true} {
		if _, err := ParseReference(strings.Repeat("a", n)); err == nil ||
			strings.Contains(err.Error(), "longer than 1024 bytes") != want {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestTheNumberOfPathsThatAreNotJudged(t *testing.T) {
	for n, want := range map[int]int{0: 0, maxUnjudged: maxUnjudged, maxUnjudged + 1: maxUnjudged} {
		list := strings.TrimSuffix(strings.Repeat(`{"image":"a"},`, n), ",")
		s := findShapes(jsontext.Value(`{"spec":{"steps":[` + list + `]},"status":{"image":"a"}}`))
		if len(s.unjudged) != want || len(s.containers) != 0 {
			t.Errorf("of %d: %q, want %d", n, s.unjudged, want)
		}
	}
}

func TestTheLengthOfManifests(t *testing.T) {
	const pod = `{"apiVersion":"v1","kind":"Pod"}`
	stream := []byte(pod + strings.Repeat(" ", maxStream-len(pod)+1))
	docs, err := ReadDocuments(bytes.NewReader(stream[:maxStream]))
	if err != nil || len(docs) != 1 || docs[0].Err != nil || docs[0].Kind != "Pod" {
		t.Errorf("32 MiB: %d documents, %v", len(docs), err)
	}
	if docs, err := ReadDocuments(bytes.NewReader(stream)); err == nil || docs != nil {
		t.Errorf("a byte more: %d documents, %v", len(docs), err)
	}
}

func TestTheSizeOfWarnings(t *testing.T) {
	line := func(n, length int) string { return fmt.Sprintf("%0*d", length, n) }
	for _, length := range []int{16, 17} {
		var w warnings
		for i := range 34 { // 4080 characters
			w.add(line(i, maxWarning))
		}
		w.add(line(0, length))
		w.add(line(0, 1))
		want := map[int]int{16: 4096, 17: 4081}[length]
		if got := len(strings.Join(w.texts, "")); got != want || w.size != want {
			t.Errorf("with one of %d: %d characters, counted as %d, want %d", length, got, w.size, want)
		}
	}
	var w warnings
	w.addCut([]string{line(1, maxWarning), line(2, maxWarning+1)})
	want := []string{line(1, maxWarning), line(2, maxWarning+1)[:maxWarning-3] + "..."}
	if !slices.Equal(w.texts, want) {
		t.Errorf("%q", w.texts)
	}
}

// TestTheFirstImagesHaveHints: images without hints do not count.
func TestTheFirstImagesHaveHints(t *testing.T) {
	verdicts := []Verdict{{}}
	for i := range maxSentences + 1 {
		verdicts = append(verdicts, Verdict{Hints: []string{fmt.Sprint(i)}}, Verdict{})
	}
	var w warnings
	w.addHints(verdicts, nothing)
	if len(w.texts) != maxSentences || w.texts[0] != "0" || w.texts[maxSentences-1] != "19" {
		t.Errorf("%q", w.texts)
	}
}

func TestSentencesThatAreLeftOutAreCounted(t *testing.T) {
	p, err := NewPolicy(PolicyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{maxSentences: "", maxSentences + 1: "and 1 more",
		maxSentences + 5: "and 5 more"} {
		o := &object{}
		for i := range n {
			o.Pod.Containers = append(o.Pod.Containers, fmt.Sprintf("a.b/c%d", i))
		}
		q := &request{Operation: "CREATE", Object: o}
		f, err := New(Options{Policy: p}).decideAll(t.Context(), q, kinds[groupKind{"", "Pod"}])
		if err != nil || strings.Join(f.sentences[maxSentences:], "; ") != want || len(f.causes) != maxSentences {
			t.Errorf("of %d images: %q, %d causes, %v; want %q", n, f.sentences, len(f.causes), err, want)
		}
	}
}

func TestTheSizeOfTheListOfImages(t *testing.T) {
	all := func(*Verdict) bool { return true }
	image := func(n int) Verdict { return Verdict{Image: strings.Repeat("i", n)} }
	i, invalid := image(1023).Image, Verdict{Image: "I", Reason: InvalidReference}
	three := []Verdict{image(1023), image(1023), invalid, image(1023)} // each takes its length and a space
	for _, row := range []struct {
		last []Verdict
		want string // after three
	}{
		{nil, ""}, {[]Verdict{image(1023)}, " " + i}, {[]Verdict{image(1024)}, " and 1 more"},
		{[]Verdict{image(1024), image(1), image(1)}, " and 3 more"},
	} {
		got := strings.Join(listImages(slices.Concat(three, row.last), all), " ")
		if rest, ok := strings.CutPrefix(got, i+" "+i+" "+i); !ok || rest != row.want {
			t.Errorf("%d more images: %d bytes, then %q", len(row.last), len(got), rest)
		}
	}
}

func TestTheCharactersOfAPlatform(t *testing.T) {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
	for c := range rune(0x180) {
		if notInPlatform(c) == strings.ContainsRune(plain, c) {
			t.Errorf("%q: %v", c, notInPlatform(c))
		}
	}
}

// TestAnObjectIsReadOnce if kind and operation come first, as the API server sends them.
func TestAnObjectIsReadOnce(t *testing.T) {
	const spec = `{"spec":{"containers":[{"image":"a"}]}}`
	for operation, want := range map[string][2]bool{
		"CREATE": {true, false}, "UPDATE": {true, true}, "DELETE": {false, false}, "CONNECT": {false, false},
	} {
		q, later := &request{}, objects{}
		text := `{"kind":{"kind":"Pod"},"operation":"` + operation + `","object":` + spec + `,"oldObject":` + spec + `}`
		err := decode([]byte(text), func(dec *jsontext.Decoder) error { return q.read(dec, &later) })
		if err != nil || (q.Object != nil) != want[0] || (q.OldObject != nil) != want[1] ||
			(later.object == span{}) != want[0] || (later.oldObject == span{}) != want[1] {
			t.Errorf("%s: %+v, later %+v, %v", operation, q, later, err)
		}
	}
}

// TestWhatALargeReviewNeededIsNotKept: a small one would hold that memory, which is not counted for it.
func TestWhatALargeReviewNeededIsNotKept(t *testing.T) {
	large := map[*jsontext.Decoder]bool{} // it keeps them, so that no other has the same address
	for range 20 {
		err := decode([]byte(strings.Repeat(" ", maxKept)+"1"), func(dec *jsontext.Decoder) error {
			large[dec] = true
			return skip(dec)
		})
		if err != nil {
			t.Fatal(err)
		}
		decode([]byte("1"), func(dec *jsontext.Decoder) error {
			if large[dec] {
				t.Error("the decoder of a large input is used again")
			}
			return nil
		})
	}
	b := &capacities{}
	w := New(Options{Bodies: b})
	for range 20 {
		for _, b.size = range []int{maxKept + 1, 1} {
			r := httptest.NewRequest(http.MethodPost, "/validate", nil)
			if _, _, err := w.readReview(httptest.NewRecorder(), r); err == nil {
				t.Fatal("nothing is a review")
			}
		}
	}
	if b.most > maxKept {
		t.Errorf("a buffer of %d bytes is used again", b.most)
	}
}

// capacities is a Bodies of bodies of blanks, which remembers how large the buffers are that it is given.
type capacities struct{ size, most int }

func (c *capacities) Read(into *bytes.Buffer, _ http.ResponseWriter, _ *http.Request, _ int64, _ int) (func(), error) {
	c.most = max(c.most, into.Cap())
	into.WriteString(strings.Repeat(" ", c.size))
	return func() {}, nil
}
