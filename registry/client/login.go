package client

import (
	"context"
	"fmt"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// Logins find the login for a host[:port]. No login is the zero credential and no error.
type Logins func(ctx context.Context, host string) (auth.Credential, error)

// DockerLogins are those that docker login keeps: in $DOCKER_CONFIG/config.json or ~/.docker/config.json, or in the
// credential helpers that this file names. Errors: the file is damaged.
func DockerLogins() (Logins, error) {
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("the file of docker login: %w", err)
	}
	return Logins(credentials.Credential(store)), nil
}
