package ocierror_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"trow/registry/ocierror"
)

func TestAnAnswer(t *testing.T) {
	secret := errors.New("the cause")
	e := &ocierror.Error{Code: ocierror.Unknown, Message: "internal error", Cause: secret,
		Status: http.StatusInsufficientStorage,
		Header: ocierror.RetryAfter(60), More: []*ocierror.Error{{Code: ocierror.BlobUnknown, Message: "second",
			Detail: map[string]string{"digest": "d"}}}}
	w := httptest.NewRecorder()
	ocierror.Write(w, httptest.NewRequest("GET", "/v2/", nil), e)
	if w.Code != 507 || w.Header().Get("Retry-After") != "60" || w.Header().Get("Content-Type") != "application/json" ||
		w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
		t.Errorf("status %d, header %v", w.Code, w.Header())
	}
	if strings.Contains(w.Body.String(), "the cause") {
		t.Errorf("the answer shows the cause: %s", w.Body)
	}
	var body struct {
		Errors []struct {
			Code, Message string
			Detail        map[string]string
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body.Errors) != 2 ||
		body.Errors[0].Code != "UNKNOWN" ||
		body.Errors[1].Detail["digest"] != "d" {
		t.Errorf("body %s, %v", w.Body, err)
	}
	if !errors.Is(e, secret) || ocierror.As(fmt.Errorf("wrapped: %w", e)) != e || ocierror.As(secret) != nil {
		t.Error("the chain of errors is broken")
	}
}

// TestAMessageIsForPeople: encoding/json writes <first>-<last> with \u003c by default.
func TestAMessageIsForPeople(t *testing.T) {
	e := &ocierror.Error{Code: ocierror.UploadInvalid, Message: "want <first>-<last> & more",
		More: []*ocierror.Error{{Code: ocierror.Unknown, Message: "m", Detail: map[string]string{"x": "<y>"}}}}
	want := `{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"want <first>-<last> & more"},` +
		`{"code":"UNKNOWN","message":"m","detail":{"x":"<y>"}}]}`
	if got := string(e.Body()); got != want {
		t.Errorf("%s", got)
	}
}

// TestAnErrorHasNoHeaderOfASuccess: what a handler has set before a step that failed must not go out with the error.
func TestAnErrorHasNoHeaderOfASuccess(t *testing.T) {
	for before, after := range map[string]string{"max-age=31536000, immutable": "", "no-store": "no-store"} {
		w := httptest.NewRecorder()
		for _, name := range []string{"ETag", "Docker-Content-Digest", "Content-Range", "Location", "Link", "OCI-Tag"} {
			w.Header().Set(name, "x")
		}
		w.Header().Set("Cache-Control", before)
		ocierror.Write(w, httptest.NewRequest("GET", "/v2/", nil),
			&ocierror.Error{Code: ocierror.SizeInvalid, Status: 416,
				Header: http.Header{"Content-Range": {"bytes */5"}}})
		h := w.Header()
		if len(h) > 4 || h.Get("Content-Range") != "bytes */5" || h.Get("Cache-Control") != after {
			t.Errorf("%v", h)
		}
	}
}

func TestHeadHasNoBody(t *testing.T) {
	w := httptest.NewRecorder()
	ocierror.Write(w, httptest.NewRequest("HEAD", "/v2/", nil),
		&ocierror.Error{Code: ocierror.BlobUnknown, Message: "unknown"})
	if b, _ := io.ReadAll(w.Body); w.Code != 404 || len(b) != 0 || w.Header().Get("Content-Length") == "0" {
		t.Errorf("status %d, header %v, body %q", w.Code, w.Header(), b)
	}
}

func TestADetailThatCannotBeEncoded(t *testing.T) {
	e := &ocierror.Error{Code: ocierror.Denied, Message: "no", Detail: func() {}}
	if got := strings.TrimSpace(string(e.Body())); got != `{"errors":[{"code":"DENIED","message":"no"}]}` {
		t.Error(got)
	}
}

func TestStatuses(t *testing.T) {
	for e, want := range map[*ocierror.Error]int{
		{Code: ocierror.ManifestInvalid}:                            400,
		{Code: ocierror.TooManyRequests}:                            429,
		{Code: "NEVER_HEARD_OF"}:                                    500,
		(&ocierror.Error{Code: ocierror.Denied}).With(412):          412,
		{Code: ocierror.Unknown, Status: http.StatusGatewayTimeout}: 504,
	} {
		if got := e.HTTPStatus(); got != want {
			t.Errorf("%s: %d, want %d", e.Code, got, want)
		}
	}
}

func TestClip(t *testing.T) {
	if got := ocierror.Clip(strings.Repeat("é", 200)); len(got) > 310 || !strings.HasSuffix(got, "…") ||
		strings.ContainsRune(got, '\uFFFD') {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	if got := ocierror.Clip("short"); got != "short" {
		t.Error(got)
	}
}

func TestIsPath(t *testing.T) {
	for path, want := range map[string]bool{"/v2": true, "/v2/": true, "/v2/a/b": true, "/v2a": false, "/": false,
		"/token": false} {
		if ocierror.IsPath(path) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}
