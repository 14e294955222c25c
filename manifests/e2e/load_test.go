package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// again is how long after a failure a request is sent a second time: longer than an update of endpoints takes.
const again = 3 * time.Second

// attempt is one request of a load.
type attempt struct {
	kind       string
	begin, end time.Time
	err        error
	second     error // of the same request, sent again, if err is not nil and that has ended
}

// load are requests of several kinds that clients send all the time, one of each kind after the other.
type load struct {
	mu       sync.Mutex // guards attempts
	attempts []*attempt
}

// startLoad starts sending requests, which ends with the test.
func startLoad(t *testing.T, kinds map[string]func(context.Context) error) *load {
	l := &load{}
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for kind, send := range kinds {
		clients.Go(func() { l.client(ctx, kind, send) })
	}
	t.Cleanup(func() {
		cancel()
		clients.Wait()
	})
	return l
}

// client sends requests of a kind until ctx is done.
func (l *load) client(ctx context.Context, kind string, send func(context.Context) error) {
	for ctx.Err() == nil {
		a := &attempt{kind: kind, begin: time.Now()}
		a.err = send(ctx)
		a.end = time.Now()
		if ctx.Err() != nil {
			return // the end of the load may have cut it off
		}
		l.mu.Lock()
		l.attempts = append(l.attempts, a)
		l.mu.Unlock()
		if a.err != nil {
			time.Sleep(again)
			err := send(ctx)
			l.mu.Lock()
			a.second = err
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// since returns the attempts that ended since then and have failed, and logs how many there were of each kind. There
// must be some of each kind that takes less than a second.
func (l *load) since(t *testing.T, begin time.Time, what string) (failed []attempt) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	count, slowest, bad := map[string]int{}, map[string]time.Duration{}, map[string]int{}
	for _, a := range l.attempts {
		if a.end.Before(begin) {
			continue
		}
		count[a.kind]++
		slowest[a.kind] = max(slowest[a.kind], a.end.Sub(a.begin))
		if a.err != nil {
			bad[a.kind]++
			failed = append(failed, *a)
		}
	}
	for _, kind := range quick {
		if count[kind] == 0 {
			t.Errorf("%s: %s: none", what, kind)
		}
	}
	var all []string
	for _, kind := range slices.Sorted(maps.Keys(count)) {
		all = append(all, fmt.Sprintf("%s: %d, %d failed, slowest %.2fs", kind, count[kind], bad[kind],
			slowest[kind].Seconds()))
	}
	t.Logf("%s (%.1fs):\n  %s", what, time.Since(begin).Seconds(), strings.Join(all, "\n  "))
	return failed
}

// none fails the test for each of these.
func none(t *testing.T, what string, begin time.Time, failed []attempt) {
	t.Helper()
	for _, a := range failed {
		t.Errorf("%s: %s failed at %.2fs, after %.2fs: %v", what, a.kind, a.begin.Sub(begin).Seconds(),
			a.end.Sub(a.begin).Seconds(), a.err)
	}
}

// user is what the requests of a load are made of.
type user struct {
	c           *cluster.Cluster
	http        *http.Client // a connection for each request
	kept        *http.Client // one connection for many
	image       string       // without tag and digest
	digest      string       // of its manifest
	layer       string       // digest of its largest blob
	pods, stale atomic.Int64 // pods that were created; answers that say that they may be stale
	wrong       atomic.Int64 // pods that were allowed, and have to be denied
}

// newUser pushes an image and returns a user of it.
func newUser(t *testing.T, c *cluster.Cluster) *user {
	t.Helper()
	const size = 8 << 20
	img := app(t, "rolled", size)
	blobs, _ := layout(t, img)
	u := &user{c: c, image: host + "/rolled", digest: push(t, c, "rolled", "1", img)}
	for d, b := range blobs {
		if len(b) > size {
			u.layer = d
		}
	}
	var err error
	if u.http, err = registryClient(c); err != nil {
		t.Fatal(err)
	}
	u.http.Timeout = 40 * time.Second // the slow pull takes 13
	transport := u.http.Transport.(*http.Transport)
	u.kept = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: transport.TLSClientConfig.RootCAs, ServerName: transport.TLSClientConfig.ServerName}}}
	return u
}

// review creates a pod with an image, as a dry run. If sentence is empty, it must be allowed, and otherwise denied with
// that.
func (u *user) review(image, sentence string) func(context.Context) error {
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},`+
		`"spec":{"containers":[{"name":"c","image":%q}]}}`, image)
	return func(ctx context.Context) error {
		status, answer, err := u.c.Ask(ctx, http.MethodPost, "/api/v1/namespaces/rolled/pods?dryRun=All", body)
		if err != nil {
			return err
		}
		var said struct{ Message string }
		err = json.Unmarshal(answer, &said)
		switch {
		case sentence == "" && status == http.StatusCreated:
			return nil
		case sentence != "" && status == http.StatusForbidden && said.Message == sentence:
			return nil
		case sentence != "" && status == http.StatusCreated:
			u.wrong.Add(1)
		}
		if err != nil {
			said.Message = string(answer)
		}
		return fmt.Errorf("status %d: %s", status, said.Message)
	}
}

// get gets an object of the registry, which must have that digest.
func (u *user) get(client *http.Client, address, what, digest string, pace time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/v2/rolled/"+what, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.Header.Get("Trow-Stale") != "" {
			u.stale.Add(1)
		}
		hash := sha256.New()
		for err == nil {
			_, err = io.CopyN(hash, resp.Body, 512<<10)
			time.Sleep(pace)
		}
		if got := fmt.Sprintf("sha256:%x", hash.Sum(nil)); err != io.EOF || got != digest {
			return fmt.Errorf("%s: %w, %s", resp.Status, err, got)
		}
		return nil
	}
}

// run creates a pod, waits until it runs and deletes it. The node pulls its image from the registry. A pull that fails
// is an error, although the kubelet would try it again.
func (u *user) run(ctx context.Context) error {
	const path = "/api/v1/namespaces/rolled/pods"
	name := fmt.Sprint("p", u.pods.Add(1))
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},`+
		`"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":%q,"imagePullPolicy":"Always"}]}}`,
		name, u.image+":1")
	status, answer, err := u.c.Ask(ctx, http.MethodPost, path, body)
	if err != nil || status != http.StatusCreated {
		return fmt.Errorf("create: %d: %s, %w", status, answer, err)
	}
	defer u.c.Ask(ctx, http.MethodDelete, path+"/"+name, "")
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		var pod struct {
			Status struct {
				ContainerStatuses []struct {
					State struct {
						Running *struct{}
						Waiting *struct{ Reason, Message string }
					}
				}
			}
		}
		if err := u.c.Get(ctx, path+"/"+name, &pod); err != nil {
			return err
		}
		for _, s := range pod.Status.ContainerStatuses {
			if s.State.Running != nil {
				return nil
			}
			if w := s.State.Waiting; w != nil && strings.Contains(w.Reason, "Pull") {
				return fmt.Errorf("%s: %s", w.Reason, w.Message)
			}
		}
		if time.Since(begin) > time.Minute {
			return fmt.Errorf("pod %s does not run: %+v", name, pod.Status)
		}
	}
}

// quick are the kinds of requests that take less than a second.
var quick = []string{"verdict, allowed by tag", "verdict, allowed by digest", "verdict, denied", "pull by tag",
	"pull by digest", "pull by digest, kept", "pull of a layer"}

// unknown is the verdict about a tag that no replica has. Each must ask etcd.
const unknown = "verdict, unknown"

// kinds are the requests of the load, by what they are.
func (u *user) kinds() map[string]func(context.Context) error {
	const service, loopback = cluster.NodeIP + ":31000", "127.0.0.1:21000" // the node port; trow node
	return map[string]func(context.Context) error{
		"verdict, allowed by tag":    u.review(u.image+":1", ""),
		"verdict, allowed by digest": u.review(u.image+"@"+u.digest, ""),
		"verdict, denied":            u.review("docker.io/nginx", denied+"Remote image docker.io/nginx"+notIn),
		unknown:                      u.review(u.image+":2", denied+"Local image "+u.image+":2"+notIn),
		"pull by tag":                u.get(u.http, service, "manifests/1", u.digest, 0),
		"pull by digest":             u.get(u.http, service, "manifests/"+u.digest, u.digest, 0),
		"pull by digest, kept":       u.get(u.kept, loopback, "manifests/"+u.digest, u.digest, 0),
		"pull of a layer":            u.get(u.http, loopback, "blobs/"+u.layer, u.layer, 0),
		"slow pull of a layer":       u.get(u.http, service, "blobs/"+u.layer, u.layer, 650*time.Millisecond),
		"pod":                        u.run,
	}
}
