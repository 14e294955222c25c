package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

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

// FileLogins are those in a file of docker login, or in the credential helpers that it names. The file is read now.
// Errors: there is no such file; it is damaged.
func FileLogins(path string) (Logins, error) {
	if _, err := os.Stat(path); err != nil { // to the library no file is one without logins
		return nil, err
	}
	store, err := credentials.NewStore(path, credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("%s is not a file of docker login: %w", path, err)
	}
	return StoredLogins(store, path), nil
}

// HelperLogins are those that the program docker-credential-NAME knows, which is run for each. name is made of letters,
// digits, - and _.
func HelperLogins(name string) Logins {
	return StoredLogins(credentials.NewNativeStore(name), "docker-credential-"+name)
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
				return c, &loginError{host, from, err}
			}
			if c != auth.EmptyCredential {
				break
			}
		}
		return c, nil
	}
}

// loginError says that the login of a host cannot be read.
type loginError struct {
	host, file string
	cause      error
}

func (e *loginError) Error() string {
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
