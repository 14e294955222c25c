package bench

import "testing"

func TestChallenge(t *testing.T) {
	tests := []struct {
		text, scheme, name, want string
		found                    bool
	}{
		{`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`, "bearer", "scope",
			"repository:a/b:pull,push", true},
		{`Basic realm="a, b", Bearer realm="https://a/t"`, "bearer", "realm", "https://a/t", true},
		{`BEARER Realm=x, service="a\"b"`, "bearer", "service", `a"b`, true},
		{`Basic realm="Bearer realm=x"`, "bearer", "realm", "", false},
		{`Basic`, "basic", "realm", "", true},
		{`Bearer realm="never ends`, "bearer", "realm", "never ends", true},
		{``, "basic", "", "", false},
	}
	for _, test := range tests {
		params, found := challenge(test.text, test.scheme)
		if found != test.found || params[test.name] != test.want {
			t.Errorf("%s: %v, %v", test.text, params, found)
		}
	}
}

// FuzzChallenge looks for input that makes the parser panic.
func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`)
	f.Add(`Basic realm="a, b", Bearer realm=https://a/t`)
	f.Fuzz(func(t *testing.T, text string) { challenge(text, "bearer") })
}
