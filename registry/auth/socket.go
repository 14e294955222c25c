package auth

import "context"

// Socket is the identity of all requests on the administration socket. File permissions decide who can open it, so it may
// do everything.
var Socket = &Identity{}

type socketKey struct{}

// WithSocket marks the context of a connection of the administration socket.
func WithSocket(ctx context.Context) context.Context {
	return context.WithValue(ctx, socketKey{}, true)
}

// onSocket reports whether a request came over the administration socket.
func onSocket(ctx context.Context) bool { return ctx.Value(socketKey{}) != nil }

// Unlimited reports whether limits, quotas and immutable tags do not apply to this identity. This is true for Socket
// alone.
func (i *Identity) Unlimited() bool { return i == Socket }
