package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"trow/registry/auth"
	"trow/registry/settings"
)

// serverPod is what the tests read of the server's part of a manifest.
type serverPod struct {
	args []string
	port int    // that of the container
	file string // the settings
}

func podOf(t *testing.T, manifest string) (pod serverPod) {
	t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
			Spec     struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Args  []string
							Env   []struct{ Name string }
							Ports []struct{ ContainerPort int }
						}
					}
				}
			}
		}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		switch object.Kind + "/" + object.Metadata.Name {
		case "ConfigMap/trow", "ConfigMap/trow-base":
			pod.file = object.Data["trow.yaml"]
		case "StatefulSet/trow":
			c := object.Spec.Template.Spec.Containers[0]
			if pod.args, pod.port = c.Args, c.Ports[0].ContainerPort; len(c.Env) > 0 {
				t.Errorf("%s: has an environment of its own: %v", manifest, c.Env)
			}
		}
	}
	return pod
}

// TestTheImageListensForItsPods: by default the server listens for this machine alone, and the image for all, whatever
// arguments a pod gives; with those of the manifest, and of the one before the image had to say so. There, clients
// without a login may create, and move no tag.
func TestTheImageListensForItsPods(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	env := regexp.MustCompile(`(?m)^ENV (TROW_\w+)=(\S+)$`).FindAllStringSubmatch(string(dockerfile), -1)
	for _, e := range env {
		t.Setenv(e[1], e[2])
	}
	for _, manifest := range []string{"manifests/trow.yaml", "manifests/e2e/testdata/earlier.yaml"} {
		pod := podOf(t, manifest)
		file := filepath.Join(t.TempDir(), "trow.yaml")
		if err := os.WriteFile(file, []byte(pod.file), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := &cobra.Command{}
		settings.AddConfigFlag(cmd.Flags())
		settings.Register(cmd.Flags(), new(options).parts()...)
		if len(pod.args) == 0 || pod.args[0] != "serve" {
			t.Fatalf("%s: the arguments are %q", manifest, pod.args)
		}
		// In the pod the file is mounted where --config says.
		args := slices.DeleteFunc(pod.args[1:], func(arg string) bool { return strings.HasPrefix(arg, "--config=") })
		if err := cmd.ParseFlags(append(args, "--config="+file)); err != nil {
			t.Fatal(err)
		}
		o, err := load(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(":%d", pod.port); o.server.Listen != want {
			t.Errorf("%s: the pod listens on %s, and its port is %s", manifest, o.server.Listen, want)
		}
		if p, err := o.registry.Auth.Policy(); err != nil || p.Anonymous != auth.CreateOnly || p.Private {
			t.Errorf("%s: without a login: %+v, %v", manifest, p, err)
		}
	}
}

// TestWhatNeedsNoLoginByDefault: everything from this machine; from elsewhere, to pull and to create.
func TestWhatNeedsNoLoginByDefault(t *testing.T) {
	p := start(t, t.TempDir())
	d := p.push("app", "1")
	image := p.want(200, "GET", "/v2/app/manifests/1", "")
	other := strings.Replace(image, `"schemaVersion":2`, `"annotations":{"a":"b"},"schemaVersion":2`, 1)
	put := func(status int, tag, manifest string, headers ...string) string {
		t.Helper()
		return p.want(status, "PUT", "/v2/app/manifests/"+tag, manifest,
			append([]string{"Content-Type", manifestType}, headers...)...)
	}
	proxied := []string{"X-Forwarded-For", "10.0.0.1"}
	put(201, "2", other, proxied...)
	put(201, "1", image, proxied...) // the same again
	if text := put(403, "1", other, proxied...); !strings.Contains(text, "trow token create NAME --repository app") ||
		!strings.Contains(text, "names "+d.String()) {
		t.Errorf("the refusal does not say why, or what to do: %s", text)
	}
	if text := p.want(403, "DELETE", "/v2/app/manifests/1", "", proxied...); !strings.Contains(text, "token create") {
		t.Errorf("the refusal does not say what to do: %s", text)
	}
	put(201, "1", other)
	p.want(202, "DELETE", "/v2/app/manifests/1", "")
	if text := p.out.String(); !strings.Contains(text, "pull, push and delete (only this machine can connect)") {
		t.Errorf("the text at the start does not say so: %s", text)
	}
}
