package admission_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"trow/admission"
)

// TestHostileReviewsCostBoundedTimeAndMemory checks that a review of any content allocates at most 24 times its size,
// and takes at most 40 times as long as an honest review of that size, of which most is read at once.
func TestHostileReviewsCostBoundedTimeAndMemory(t *testing.T) {
	const size = 2 << 20 // the cost is proportional, and 7 MiB take longer to test
	w := newHook(admission.Options{Images: newRegistry(t, held), Policy: newPolicy(t, admission.PolicyOptions{})})
	review := func(spec string) string {
		return reviewOf(t, "", "Pod", object{"kind": "Pod", "spec": json.RawMessage(spec)}, nil)
	}
	fill := func(prefix, unit, suffix string) string {
		return prefix + strings.TrimSuffix(strings.Repeat(unit, size/len(unit)), ",") + suffix
	}
	var names, prefixes strings.Builder // as many as fit, and long ones that differ only at the end
	for i := 0; names.Len() < size; i++ {
		fmt.Fprintf(&names, `"%x":0,`, i)
	}
	for i := 0; prefixes.Len() < size; i++ {
		fmt.Fprintf(&prefixes, `"%s%x":0,`, strings.Repeat("a", 1000), i)
	}
	members := func(list string) string { return "{" + strings.TrimSuffix(list, ",") + "}" }
	mark := review(`{"x":"HERE"}`)
	around := func(filling string) string { return strings.Replace(mark, `"HERE"`, filling, 1) }
	cost := func(body string, tries int) (bytes uint64, took time.Duration) {
		took = time.Hour
		for range tries {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin := processorTime(t)
			post(w, strings.NewReader(body))
			took = min(took, processorTime(t)-begin)
			runtime.ReadMemStats(&after)
			bytes = after.TotalAlloc - before.TotalAlloc
		}
		return bytes, took
	}
	container := `{"name":"c","image":"docker.io/library/nginx:1.21.0","env":[{"name":"A","value":"` +
		strings.Repeat("b", 200) + `"}]},`
	honestBytes, honestTime := cost(review(fill(`{"containers":[`, container, "]}")), 1)
	for name, body := range map[string]string{
		"commas":              around(fill("[", ",", "]")),
		"only commas":         strings.Repeat(",", size),
		"empty containers":    review(fill(`{"containers":[`, "{},", "]}")),
		"null containers":     review(fill(`{"containers":[`, "null,", "]}")),
		"empty volumes":       review(fill(`{"volumes":[`, "{},", "]}")),
		"volumes of images":   review(fill(`{"volumes":[`, `{"image":{}},`, "]}")),
		"brackets":            around(fill("", "[", "")),
		"braces":              around(fill("", `{"a":`, "")),
		"closed brackets":     around(strings.Repeat("[", size/2) + strings.Repeat("]", size/2)),
		"a number":            around(strings.Repeat("9", size)),
		"a number's exponent": around("1e" + strings.Repeat("9", size)),
		"escapes":             around(fill(`"`, `\u0000`, `"`)),
		"invalid UTF-8":       around(`"` + strings.Repeat("\xff", size) + `"`),
		"the same name":       around(fill(`{`, `"a":0,`, `}`)),
		"many names":          around(members(names.String())),
		"long names":          around(members(prefixes.String())),
		"escaped names":       around(members(strings.ReplaceAll(names.String(), `:0,"`, `:0,"\u0061`))),
		"white space":         around(strings.Repeat(" ", size) + "0"),
		"groups":              strings.Replace(mark, `"username":"alice"`, fill(`"groups":[`, `"",`, "]"), 1),
		"owners": strings.Replace(mark, `"spec":`,
			fill(`"metadata":{"ownerReferences":[`, "{},", `]},"spec":`), 1),
	} {
		bytes, took := cost(body, 1)
		if bytes > 24*size {
			t.Errorf("%s: %d MiB are allocated, for an honest review %d MiB", name, bytes>>20, honestBytes>>20)
		}
		if took > 40*honestTime { // another process may have had the processor
			_, took = cost(body, 3)
		}
		if took > 40*honestTime {
			t.Errorf("%s: took %s, an honest review %s", name, took, honestTime)
		}
	}
}

// processorTime returns the processor time of this process, which the load of other processes hardly changes.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
