package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAnUpstreamHoldsNoOtherUp that is asked for the same content, whether it sends wrong bytes, or stops.
func TestAnUpstreamHoldsNoOtherUp(t *testing.T) {
	for name, send := range map[string][]byte{"wrong": bytes.Repeat([]byte("wrong"), 100_000),
		"never": bytes.Repeat([]byte("right"), 100_000)} {
		t.Run(name, func(t *testing.T) {
			w, good, evil := newCaches(t)
			content := bytes.Repeat([]byte("right"), 100_000)
			d := good.blob("team/app", content)
			rest := make(chan struct{})
			evil.mu.Lock()
			evil.blobs["team/app/blobs/"+d.String()], evil.rest = send, rest
			evil.mu.Unlock()
			resp, err := http.Get(w.url + "/v2/f/evil.example/team/app/blobs/" + d.String())
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			defer close(rest)
			if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			done := make(chan string, 1)
			go func() {
				resp, err := http.Get(w.url + "/v2/f/quay.io/team/app/blobs/" + d.String())
				if err != nil {
					done <- err.Error()
					return
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				switch {
				case err != nil:
					done <- err.Error()
				case !bytes.Equal(got, content):
					done <- "other bytes"
				default:
					done <- ""
				}
			}()
			select {
			case text := <-done:
				if text != "" {
					t.Error(text)
				}
			case <-time.After(10 * time.Second):
				t.Error("the other upstream's content waits")
			}
		})
	}
}

// TestARepositoryThatLacksABlob makes it unknown in no other repository, also if it is asked for there first.
func TestARepositoryThatLacksABlob(t *testing.T) {
	w, o := newCache(t, "")
	content := bytes.Repeat([]byte("right"), 10_000)
	d := o.blob("team/app", content).String()
	hold := make(chan struct{})
	o.set(0, hold) // of answers without a blob
	ask := func(repo string) chan string {
		done := make(chan string, 1)
		go func() {
			resp, err := http.Get(w.url + "/v2/f/quay.io/" + repo + "/blobs/" + d)
			if err != nil {
				done <- err.Error()
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode == http.StatusOK && !bytes.Equal(got, content) {
				err = errors.New("other bytes")
			}
			done <- fmt.Sprint(resp.StatusCode, " ", err)
		}()
		return done
	}
	lacks := ask("team/other")
	for !strings.Contains(o.requests(), "/team/other/") {
		time.Sleep(time.Millisecond)
	}
	has := ask("team/app")
	select {
	case text := <-has: // it has not joined, which is right as well
		has <- text
	case <-time.After(200 * time.Millisecond):
	}
	close(hold)
	if got := <-has; got != "200 <nil>" {
		t.Errorf("the repository that has it: %s", got)
	}
	if got := <-lacks; got != "404 <nil>" {
		t.Errorf("the repository that lacks it: %s", got)
	}
}
