package cache

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"
)

// same are the headers that are the origin's.
var same = []string{"Content-Type", "Docker-Content-Digest", "Content-Length"}

// TestWhatIsServedIsTheOrigins byte for byte: Docker's and OCI types, indexes, and what belongs to them, by tag and by
// digest, in both forms of a name, when it is fetched and when it is held.
func TestWhatIsServedIsTheOrigins(t *testing.T) {
	for name, start := range map[string]func(*testing.T) *origin{"distribution": openOrigin, "olareg": olaregOrigin} {
		t.Run(name, func(t *testing.T) {
			o := start(t)
			s := trow(t, "4Gi", o.entry("origin.example"))
			all := variants(o)
			for _, round := range []string{"cold", "warm", "restarted"} {
				if round == "restarted" {
					s.end(9)
					s.start()
				}
				for tag, i := range all {
					for _, ns := range []string{"origin.example", ""} {
						c, repo := s.client(ns), "team/app"
						if c.t = t; ns == "" {
							repo = "f/origin.example/team/app"
						}
						for _, ref := range []string{tag, i.digest()} {
							compareAnswers(t, round+" "+tag, o.client, c, repo, "manifests/"+ref)
						}
						for _, b := range i.blobs {
							compareAnswers(t, round+" "+tag, o.client, c, repo, "blobs/"+sha(b))
							compareAnswers(t, round+" "+tag, o.client, c, repo, "blobs/"+sha(b), "Range", "bytes=3-9")
						}
					}
				}
			}
		})
	}
}

// TestReferrersAreTheOrigins although only the image was pulled: from the API, and from the tag that replaces it.
func TestReferrersAreTheOrigins(t *testing.T) {
	for name, start := range map[string]func(*testing.T) *origin{"distribution": openOrigin, "olareg": olaregOrigin} {
		t.Run(name, func(t *testing.T) {
			o := start(t)
			all := variants(o)
			subject := all["oci"].digest()
			if resp, _ := o.client.ask(http.MethodGet, "team/app/referrers/"+subject, nil); resp.StatusCode == 404 {
				list, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex,
					"manifests": []descriptor{describe(ociManifest, all["artifact"].manifest)}})
				if err != nil {
					t.Fatal(err)
				}
				o.push("team/app", &image{mediaType: ociIndex, manifest: list}, "sha256-"+subject[len("sha256:"):])
			}
			c := trow(t, "4Gi", o.entry("origin.example")).client("origin.example")
			c.pulls("team/app", "oci", true)
			resp, body := c.ask(http.MethodGet, "team/app/referrers/"+subject, nil, "Accept", ociIndex)
			if !bytes.Contains(body, []byte(all["artifact"].digest())) {
				t.Fatalf("%s: %s", resp.Status, body)
			}
			c.pulls("team/app", all["artifact"].digest(), true)
		})
	}
}

// variants pushes what registries have, and returns it by its tag.
func variants(o *origin) map[string]*image {
	all := map[string]*image{
		"oci":    newImageOf(ociManifest, 7, 1000, 100_000),
		"docker": newImageOf(dockerManifest, 8, 1000, 200_000),
		"empty":  newImageOf(ociManifest, 9),
	}
	index := func(mediaType string, children ...*image) *image {
		var list []descriptor
		for n, c := range children {
			d := describe(c.mediaType, c.manifest)
			d.Platform = map[string]string{"os": "linux", "architecture": []string{"amd64", "arm64"}[n%2]}
			list = append(list, d)
		}
		b, _ := json.MarshalIndent(map[string]any{"manifests": list, "mediaType": mediaType, "schemaVersion": 2}, "",
			"  ")
		return &image{mediaType: mediaType, manifest: append(b, '\n')}
	}
	for tag, i := range all {
		o.push("team/app", i, tag)
	}
	all["index"] = index(ociIndex, all["oci"], all["empty"])
	all["list"] = index(dockerList, all["docker"])
	// An artifact without layers of its own kind, about the image.
	config := []byte("{}")
	artifact := &image{mediaType: ociManifest, blobs: [][]byte{config, []byte("signature")}}
	subject := describe(ociManifest, all["oci"].manifest)
	artifact.manifest, _ = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
		"artifactType": "application/vnd.example.signature",
		"config":       describe("application/vnd.oci.empty.v1+json", config),
		"layers":       []descriptor{describe("application/vnd.example.signature", artifact.blobs[1])},
		"subject":      subject, "annotations": map[string]string{"note": "<&> \u2028 é"}})
	all["artifact"] = artifact
	for _, tag := range []string{"index", "list", "artifact"} {
		o.push("team/app", all[tag], tag)
	}
	return all
}

// compareAnswers compares the answers to a GET and a HEAD with those of the origin.
func compareAnswers(t *testing.T, what string, origin, c *client, repo, path string, header ...string) {
	t.Helper()
	header = append(header, "Accept", accepted)
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		origin.t = t
		want, body := origin.ask(method, "team/app/"+path, nil, header...)
		got, mine := c.ask(method, repo+"/"+path, nil, header...)
		if got.StatusCode != want.StatusCode && !(method == http.MethodHead && len(header) > 2) {
			t.Errorf("%s: %s %s/%s: %s, at the origin %s", what, method, repo, path, got.Status, want.Status)
			continue
		}
		if want.StatusCode < 400 && !bytes.Equal(mine, body) {
			t.Errorf("%s: %s %s/%s: %.100q, at the origin %.100q", what, method, repo, path, mine, body)
		}
		for _, h := range same {
			if a, b := got.Header.Get(h), want.Header.Get(h); a != b && b != "" && len(header) == 2 {
				t.Errorf("%s: %s %s/%s: %s: %q, at the origin %q", what, method, repo, path, h, a, b)
			}
		}
	}
}
