package s3

import (
	"context"
	"errors"
	"io"

	"trow/storage"
	"trow/storage/internal/local"
)

// maxIdentity bounds what is read of an identity, in bytes.
const maxIdentity = 256

// Identity implements [storage.Identified]. It makes a request.
func (b *Blobs) Identity(ctx context.Context) (string, error) {
	body, _, err := b.client.get(ctx, b.client.prefix+identityName, 0, maxIdentity)
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer body.Close()
	id, err := io.ReadAll(io.LimitReader(body, maxIdentity))
	if err != nil {
		return "", b.client.error("read "+identityName, err)
	}
	return string(id), nil
}

// SetIdentity implements [storage.Identified].
func (b *Blobs) SetIdentity(ctx context.Context, id string) error {
	if err := b.Room(ctx); err != nil {
		return err
	}
	return b.client.put(ctx, b.client.prefix+identityName, local.NewUploadID(), []byte(id))
}

// Answering returns why requests fail at once for now, an ErrUnavailable; nil while they are made. See README.md,
// Failures.
func (b *Blobs) Answering() error {
	failed, last := b.client.circuit.open()
	if failed == 0 {
		return nil
	}
	return b.client.error(failedInARow(failed), last)
}

var _ storage.Identified = (*Blobs)(nil)
