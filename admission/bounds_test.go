package admission

import (
	"os"
	"path/filepath"
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
		v.hintIncomplete("", nil)
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
