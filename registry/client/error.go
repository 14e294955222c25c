package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"trow/registry/ocierror"
	"trow/registry/redact"
)

// Error is an answer of the registry that is not a success.
type Error struct {
	Status  int           // of HTTP
	Code    ocierror.Code // of the first error in the answer; empty if the answer is not in the OCI form
	Message string        // likewise

	Registry string // host[:port] of the registry, for messages about several
}

func (e *Error) Error() string {
	if e.Code == "" && e.Message == "" {
		return fmt.Sprintf("registry: %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("registry: %s: %s", e.Code, e.Message)
}

// HTTPStatus is the status of the answer.
func (e *Error) HTTPStatus() int { return e.Status }

// Is makes a 404 an fs.ErrNotExist.
func (e *Error) Is(target error) bool {
	return target == fs.ErrNotExist && e.Status == http.StatusNotFound
}

// ReadError reads the error in an answer that is not a success. The caller closes the body.
func ReadError(resp *http.Response) *Error { return readError(resp) }

// readError reads the error in an answer.
func readError(resp *http.Response) *Error {
	const max = 64 << 10 // bytes of an answer; messages have some hundred
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, max)).Decode(&body) != nil {
		body.Errors = nil
	}
	e := newError(resp.StatusCode, body.Errors)
	if resp.Request != nil {
		e.Registry = resp.Request.URL.Host
	}
	return e
}

func newError(status int, errs errcode.Errors) *Error {
	e := &Error{Status: status}
	if len(errs) > 0 {
		e.Code, e.Message = ocierror.Code(errs[0].Code), errs[0].Message
	}
	return e
}

// convert turns an error of the library into one of this package.
func (c *Client) convert(err error) error {
	if err == nil {
		return nil
	}
	if resp, ok := errors.AsType[*errcode.ErrorResponse](err); ok {
		e := newError(resp.StatusCode, resp.Errors)
		e.Registry = c.base.Host
		return e
	}
	if login, ok := errors.AsType[*LoginError](err); ok {
		return login
	}
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return &Error{Status: http.StatusNotFound, Registry: c.base.Host}
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return &Error{Status: http.StatusUnauthorized, Code: ocierror.Unauthorized, Message: "login required",
			Registry: c.base.Host}
	}
	return redact.URL(err)
}
