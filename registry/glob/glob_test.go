package glob_test

import (
	"testing"

	"trow/registry/glob"
)

func TestWhatPatternsMatch(t *testing.T) {
	for _, row := range []struct {
		pattern, name string
		want          bool
	}{
		{"team-a/**", "team-a/app", true},
		{"team-a/**", "team-a/x/y", true},
		{"team-a/**", "team-a", false},
		{"team-a/**", "team-ab/app", false},
		{"team-a/**", "other/team-a/app", false},
		{"*/public", "a/public", true},
		{"*/public", "a/b/public", false},
		{"*/public", "public", false},
		{"**", "a/b/c", true},
		{"**/public", "public", true},
		{"a.b", "axb", false},
		{"v?", "v1", true},
		{"v?", "v10", false},
		{`/\d+\.\d+/`, "1.20", true},
		{`/\d+\.\d+/`, "v1.20", false},
		{`/a|b/`, "ab", false},
	} {
		set, err := glob.Compile("never", row.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := set.Match(row.name); got != row.want {
			t.Errorf("%s matches %s: %v", row.pattern, row.name, got)
		}
	}
	if (glob.Set{}).Match("") {
		t.Error("an empty set matches")
	}
}

func TestInvalidPatterns(t *testing.T) {
	for _, text := range []string{"", "a b", "a:b", "a,b", "[a]", "a|b", "/(/", `a\b`, "a$"} {
		if _, err := glob.Compile("fine", text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}
