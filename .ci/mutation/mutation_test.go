package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// code has a mutant of each operator, in the places where Go's grammar makes a difference.
const code = `package sample

import (
	_ "strings"
	"time"
)

const limit = 4 * 2

type flag bool

type ring[T any] struct{ at, size int }

func (r *ring[T]) next() { r.at = (r.at + 1) % r.size }

func sum[N int | float64](a, b N) N { return a + b }

func same(a, b string) flag { return a == b }

func wait(n int) time.Duration { return time.Duration(n) * (2 * 30) * time.Second }

func count(words []string, max int) (n int, tooMany bool) {
	total := 0
outer:
	for i := 0; i < len(words); i++ {
		switch {
		case words[i] == "" || words[i] == "-":
			continue outer
		case words[i] == "end":
			break outer
		}
		total += len(words[i])
		n++
	}
	return n, total > max && max != -1
}

func never(n int) bool {
	if n > 1000 {
		return n < 2000
	}
	return false
}
`

const codeTest = `package sample

import "testing"

func TestAll(t *testing.T) {
	r := ring[int]{size: 3}
	if r.next(); r.at != 1 || sum(1, 2) != 3 || same("a", "b") || !same("a", "a") || wait(1).String() != "1m0s" {
		t.Fail()
	}
	if n, many := count([]string{"a", "", "-", "b", "end", "c"}, 2); n != 2 || many {
		t.Fail()
	}
	if _, many := count([]string{"a"}, -1); many {
		t.Fail()
	}
	if _, many := count([]string{"abc"}, 2); !many {
		t.Fail()
	}
	if never(1) {
		t.Fail()
	}
}

func TestFails(t *testing.T) { t.Fail() }
`

// sample writes a module and returns the report of a run, and its error.
func sample(t *testing.T, known, only string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module sample\n\ngo 1.26\n", "p/p.go": code,
		"p/p_test.go": codeTest, "known": known} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	args := []string{"-v", "-module", dir, "-known", filepath.Join(dir, "known"), "-only", only, "./p"}
	err := run(t.Context(), args, &out)
	return out.String(), err
}

func TestTheOutcomeOfEachOperator(t *testing.T) {
	out, err := sample(t, "", "")
	for _, want := range []string{
		`KILLED p p\.go \(\*ring\)\.next ARITHMETIC_BASE r\.at \+ 1 \(`,
		`KILLED p p\.go \(\*ring\)\.next ARITHMETIC_BASE \(r\.at \+ 1\) % r\.size`,
		`KILLED p p\.go wait ARITHMETIC_BASE 2 \* 30 `,
		`(KILLED|TIMED_OUT) p p\.go count INCREMENT_DECREMENT i\+\+`,
		`KILLED p p\.go count INCREMENT_DECREMENT n\+\+ .* TestAll\n`,
		`KILLED p p\.go count INVERT_LOOPCTRL continue outer`,
		`KILLED p p\.go count INVERT_LOOPCTRL break outer`,
		`KILLED p p\.go count INVERT_ASSIGNMENTS total \+= len`,
		`KILLED p p\.go count INVERT_LOGICAL words\[i\] == "" \|\| words\[i\] == "-"`,
		`LIVED p p\.go never CONDITIONALS_BOUNDARY n > 1000 \(`,
		`UNREACHED p p\.go never CONDITIONALS_NEGATION n < 2000`,
		`note: TestFails is left out`,
		// sum and same: neither a sum with a type parameter nor a comparison of a named type can be a choice.
		`left out: 1 do not compile, 1 constants`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %s", want)
		}
	}
	want := "survivors without a reason in known:\np p.go never CONDITIONALS_BOUNDARY n > 1000"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error: %v", err)
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestKnownSurvivors(t *testing.T) {
	lives, dead := "p p.go never CONDITIONALS_BOUNDARY n > 1000\n", "p p.go never CONDITIONALS_NEGATION n > 1000\n"
	reason := "    because\n"
	for name, row := range map[string]struct{ known, want string }{
		"stale": {lives + reason + dead + reason,
			"not survivors any more; remove them from known:\n" + strings.TrimSpace(dead)},
		"no reason": {lives, "no reason for"},
		"twice":     {lives + reason + lives + reason, "occurs twice"},
		"no mutant": {reason, "a reason without a survivor"},
		"too few":   {lives + reason, "50.0 % killed, want 95 %"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := sample(t, row.known, "never .* n > 1000"); err == nil ||
				!strings.Contains(err.Error(), row.want) {
				t.Errorf("%v; want %s", err, row.want)
			}
		})
	}
}
