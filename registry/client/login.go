package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// Logins find the login for a host[:port]. No login is the zero credential and no error.
type Logins func(ctx context.Context, host string) (auth.Credential, error)

// dockerHub is the host that answers for Docker Hub, and the names under which tools keep its login: docker login, and
// then podman, Kubernetes and people.
const dockerHub = "registry-1.docker.io"

var dockerHubNames = []string{"https://index.docker.io/v1/", "docker.io", "index.docker.io", dockerHub}

// DockerLogins are those that docker login keeps: in $DOCKER_CONFIG/config.json or ~/.docker/config.json, or in the
// credential helpers that this file names. A user without a home directory has none. Errors: the file is damaged.
func DockerLogins() (Logins, error) {
	if home, err := os.UserHomeDir(); os.Getenv("DOCKER_CONFIG") == "" && (err != nil || home == "") {
		return func(context.Context, string) (auth.Credential, error) { return auth.EmptyCredential, nil }, nil
	}
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("the file of docker login: %w", err)
	}
	return StoredLogins(store, store.ConfigPath()), nil
}

// FileLogins are those in a file of docker login, or in the credential helpers that it names, for a server: a helper
// that has not answered within helperTime fails. The file is read now. Errors: there is no such file; it is damaged.
func FileLogins(path string) (Logins, error) {
	if _, err := os.Stat(path); err != nil { // to the library no file is one without logins
		return nil, err
	}
	store, err := credentials.NewStore(path, credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("%s is not a file of docker login: %w", path, err)
	}
	return bounded(StoredLogins(store, path), path), nil
}

// HelperLogins are those that the program docker-credential-NAME knows, which is run for each, for a server: one that
// has not answered within helperTime fails. name is made of letters, digits, - and _.
func HelperLogins(name string) Logins {
	from := "docker-credential-" + name
	return bounded(StoredLogins(credentials.NewNativeStore(name), from), from)
}

const (
	// helperTime bounds the run of a helper for a server, where no person answers it. Those that ask a cloud take a
	// second or two.
	helperTime = 10 * time.Second
	// maxHelpers bounds the runs for one source that have not ended, those that are no longer waited for among them.
	maxHelpers = 16
)

// errHangs and errAllHang are the errors of a helper that does not answer.
var (
	errHangs   = fmt.Errorf("it has not answered within %v", helperTime)
	errAllHang = fmt.Errorf("%d runs of it have not ended", maxHelpers)
)

// bounded does not wait for Logins for longer than helperTime. The end of the context kills a helper, but that is not
// enough: its output does not end as long as a program that it has started holds it open, such as one that a shell
// script has run.
func bounded(logins Logins, from string) Logins {
	running := make(chan struct{}, maxHelpers)
	type result struct {
		auth.Credential
		error
	}
	return func(ctx context.Context, host string) (auth.Credential, error) {
		select {
		case running <- struct{}{}:
		default:
			return auth.EmptyCredential, &LoginError{host, from, errAllHang}
		}
		ctx, cancel := context.WithTimeoutCause(ctx, helperTime, errHangs)
		defer cancel()
		done := make(chan result, 1)
		go func() {
			c, err := logins(ctx, host)
			<-running
			done <- result{c, err}
		}()
		select {
		case r := <-done:
			if r.error == nil || ctx.Err() == nil {
				return r.Credential, r.error
			}
		case <-ctx.Done():
		}
		return auth.EmptyCredential, &LoginError{host, from, context.Cause(ctx)}
	}
}

// StoredLogins are those in a store, which from names in errors.
func StoredLogins(store credentials.Store, from string) Logins {
	return func(ctx context.Context, host string) (c auth.Credential, err error) {
		names := []string{host}
		if host == dockerHub {
			names = dockerHubNames
		}
		for _, name := range names {
			if c, err = store.Get(ctx, name); err != nil {
				return c, &LoginError{host, from, err}
			}
			if c != auth.EmptyCredential {
				break
			}
		}
		return c, nil
	}
}

// LoginError says that the login of a host cannot be read. Its text has no password.
type LoginError struct {
	host, file string // file is empty if the text of the cause says where the login should be
	cause      error
}

// readable returns Logins whose errors are LoginErrors.
func readable(logins Logins) Logins {
	return func(ctx context.Context, host string) (auth.Credential, error) {
		c, err := logins(ctx, host)
		if _, ok := errors.AsType[*LoginError](err); err != nil && !ok {
			err = &LoginError{host: host, cause: err}
		}
		return c, err
	}
}

func (e *LoginError) Error() string {
	if e.file == "" {
		return fmt.Sprintf("the login for %s: %v", e.host, e.cause)
	}
	cause := e.cause.Error()
	switch missing, ok := errors.AsType[*exec.Error](e.cause); {
	case ok:
		cause = fmt.Sprintf("there is no program %s in PATH; install it, or change credHelpers or credsStore",
			missing.Name)
	case strings.Contains(cause, "auth field"):
		cause = "auth is not the base64 of user:password" // the library's text has the password in it
	}
	return fmt.Sprintf("the login for %s in %s: %s", e.host, e.file, cause)
}
