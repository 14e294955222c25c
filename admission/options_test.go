package admission_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"trow/admission"
)

func TestFlagsSetTheOptions(t *testing.T) {
	var o admission.PolicyOptions
	var c admission.CallersOptions
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(fs)
	c.AddFlags(fs)
	if o.Default != "Deny" || o.Names != nil || o.EnforceTemplates {
		t.Errorf("defaults: %+v", o)
	}
	err := fs.Parse(strings.Fields("-n a.b,c:1 --allow-prefixes=p --allow-images=i --allow-docker-official " +
		"--deny-k8s-images " +
		"--disallow-local-prefixes=dp --disallow-local-images=di --default=Allow --allow=a --deny=d " +
		"--enforce-templates --validate-client-names=n --validate-token-file=f --deny-short-names " +
		"--validate-hints=off"))
	if err != nil {
		t.Fatal(err)
	}
	lists := slices.Concat(o.Names, o.AllowPrefixes, o.AllowImages, o.DisallowLocalPrefixes, o.DisallowLocalImages,
		o.Allow, o.Deny, c.Names)
	if got := strings.Join(lists, " "); got != "a.b c:1 p i dp di a d n" {
		t.Errorf("lists: %s", got)
	}
	if !o.AllowDockerOfficial || !o.DenyK8sImages || !o.EnforceTemplates || o.Default != "Allow" ||
		c.TokenFile != "f" ||
		!o.DenyShortNames || c.Hints != "off" {
		t.Errorf("got %+v, %+v", o, c)
	}
}

func TestValidateNamesTheSetting(t *testing.T) {
	for want, o := range map[string]admission.PolicyOptions{
		`default: "x": want Allow or Deny`: {Default: "x"},
		// may be a default name
		"": {Default: "deny", DisallowLocalPrefixes: []string{"other:1/x"}},
		`disallow-local-prefixes: "other:1/x": "other:1" is not one of names`: {Names: localNames,
			DisallowLocalPrefixes: []string{"other:1/x"}},
	} {
		switch err := o.Validate(); {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestNamesAreComplete: defaults stand in for names, which are folded to lower case in a list of their own.
func TestNamesAreComplete(t *testing.T) {
	var none admission.PolicyOptions
	if none.Complete([]string{"trow:31000"}); !slices.Equal(none.Names, []string{"trow:31000"}) {
		t.Errorf("the defaults: %q", none.Names)
	}
	given := []string{"Trow.Example:5000"}
	o := admission.PolicyOptions{Names: given}
	if o.Complete([]string{"trow:31000"}); !slices.Equal(o.Names, []string{"trow.example:5000"}) ||
		given[0] != "Trow.Example:5000" {
		t.Errorf("%q, given %q", o.Names, given)
	}
}

func TestSummarySaysWhatMayRun(t *testing.T) {
	for want, o := range map[string]admission.PolicyOptions{
		"images that this registry holds; and registry.k8s.io/, k8s.gcr.io/": {},
		"images that this registry holds":                                    {DenyK8sImages: true},
		"images that this registry holds; and quay.io, docker.io/x:1, gcr.io, docker.io/library/, " +
			"all other remote images (default: Allow); never app, app:1, quay.io/x, " +
			"names without a registry": {
			AllowPrefixes: []string{"quay.io"}, AllowImages: []string{"docker.io/x:1"}, Allow: []string{"gcr.io"},
			AllowDockerOfficial: true, DenyK8sImages: true, Default: "allow", DenyShortNames: true,
			DisallowLocalPrefixes: []string{"app"}, DisallowLocalImages: []string{"app:1"}, Deny: []string{"quay.io/x"},
		},
	} {
		if got := newPolicy(t, o).Summary(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// TestReadmeHasEverySetting compares the tables with the flags.
func TestReadmeHasEverySetting(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(admission.PolicyOptions).AddFlags(fs)
	new(admission.CallersOptions).AddFlags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		value := strings.Trim(f.DefValue, "[]")
		if value != "" {
			value = "`" + value + "` "
		}
		if !strings.Contains(string(readme), "\n| `"+f.Name+"` | "+value+"|") && f.Name != "names" {
			t.Errorf("README.md has no line for %s with the default %s", f.Name, value)
		}
	})
}

// TestReadmeExamplesAreValid reads the examples of a policy as a configuration file, and makes a policy of each.
func TestReadmeExamplesAreValid(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "### Examples\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	examples := 0
	for _, part := range strings.Split(section, "\n\n") {
		if !strings.HasPrefix(part, "    ") {
			continue
		}
		examples++
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		var o admission.PolicyOptions
		o.AddFlags(fs)
		for line := range strings.Lines(part) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if err := fs.Set(key, strings.NewReplacer(`"`, "", " ", "").
				Replace(strings.Trim(value, "[]"))); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
		newPolicy(t, o)
	}
	if examples < 4 {
		t.Errorf("%d examples", examples)
	}
}
