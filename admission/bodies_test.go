package admission_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"trow/admission"
)

// noMemory is a Bodies without memory.
type noMemory struct{ error }

func (noMemory) RetryAfter() int { return 1 }

func (n noMemory) Read(*bytes.Buffer, http.ResponseWriter, *http.Request, int64, int) (func(), error) {
	return nil, n
}

// TestAReviewForWhichThereIsNoMemory is answered 503, which the API server counts as a failed call.
func TestAReviewForWhichThereIsNoMemory(t *testing.T) {
	w := admission.New(admission.Options{Images: newRegistry(t, held), Policy: newPolicy(t, admission.PolicyOptions{}),
		Bodies: noMemory{errors.New("no memory; retry")}})
	r := httptest.NewRequest("POST", "/validate", strings.NewReader("{}"))
	r.Header.Set("Content-Type", "application/json")
	got := httptest.NewRecorder()
	w.ServeHTTP(got, r)
	if got.Code != 503 || got.Header().Get("Retry-After") != "1" || got.Body.String() != "no memory; retry\n" {
		t.Errorf("%d %v %s", got.Code, got.Header(), got.Body)
	}
}

// counted is a Bodies that counts what was not given back.
type counted struct{ held, factor int }

func (c *counted) Read(into *bytes.Buffer, _ http.ResponseWriter, r *http.Request, _ int64,
	factor int) (func(), error) {
	_, err := into.ReadFrom(r.Body)
	c.held, c.factor = c.held+1, factor
	return func() { c.held-- }, err
}

// TestTheMemoryOfAReviewIsGivenBack also if it cannot be decoded.
func TestTheMemoryOfAReviewIsGivenBack(t *testing.T) {
	c := &counted{}
	w := admission.New(admission.Options{Images: newRegistry(t, held), Policy: newPolicy(t, admission.PolicyOptions{}),
		Bodies: c})
	for _, body := range []string{"{}", "[", reviewOf(t, "", "Pod", podOf(host+"/app:1"), nil)} {
		post(w, strings.NewReader(body))
		if c.held != 0 || c.factor < 24 {
			t.Errorf("after %.20s: %d held, factor %d", body, c.held, c.factor)
		}
	}
}
