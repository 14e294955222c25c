package maintenance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"trow/storage"
	"trow/storage/files"
)

// UploadsPerClient is the setting max-uploads-per-client: its default is a tenth of max-uploads, so that one client
// leaves most places to the others, but at least 16, so that a client can push several images at once. Clients that
// fill all places together lose theirs to new ones, see registry.sessions.
func (o *Options) UploadsPerClient() int {
	if o.MaxUploadsPerClient > 0 {
		return o.MaxUploadsPerClient
	}
	return max(o.MaxUploads/10, minUploadsPerClient)
}

const minUploadsPerClient = 16

const (
	// uploadKeyRecord is the record of UploadKey.
	uploadKeyRecord = "upload-key"
	// uploadKeyFile is where earlier versions kept it, in the data directory.
	uploadKeyFile = "upload.key"
)

// UploadKey returns the key that authenticates the IDs of uploads, so that clients can continue those from before a
// restart, and those of other replicas. It is a record of the journal, made at the first start. If it cannot be
// recorded in a journal that is not shared, a key for this process is returned and a warning logged: clients that push
// during a restart then have to begin again, which is no reason not to start. With a shared journal that is an error,
// because the replicas would refuse each other's uploads. Load must have returned. Errors: those of the Journal, if it
// is shared; the data directory cannot be opened.
func (d *Data) UploadKey(ctx context.Context) ([]byte, error) {
	fresh := make([]byte, sha256.Size)
	rand.Read(fresh)      // never fails
	if d.readOnly != "" { // there are no uploads
		return fresh, nil
	}
	root, err := os.OpenRoot(d.options.DataDir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	index := d.loaded.Load().index
	key, err := files.ReadIn(root, uploadKeyFile, sha256.Size)
	if err == nil && len(key) == sha256.Size && !index.Shared() {
		fresh = key
	}
	key, err = recordKey(ctx, index, fresh)
	if err == nil {
		// After the record: after a crash in between, the record counts, and the next start removes the file.
		if err := root.Remove(uploadKeyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn().Err(err).Msg("the key of upload IDs is a record of the journal; its file cannot be removed")
		}
		return key, nil
	}
	if index.Shared() {
		return nil, fmt.Errorf("the key of upload IDs cannot be recorded in the journal: %w", err)
	}
	d.log.Warn().Err(err).Msg("the key of upload IDs cannot be kept: pushes that are under way at a restart " +
		"have to begin again")
	return fresh, nil
}

// recordKey returns the recorded key, and records fresh if there is none, or it is damaged. Errors: those of the
// Journal.
func recordKey(ctx context.Context, index *storage.Index, fresh []byte) ([]byte, error) {
	for {
		key, err := index.Record(ctx, uploadKeyRecord)
		if err != nil {
			return nil, err
		}
		if len(key) == sha256.Size {
			return key, nil
		}
		switch err := index.SetRecord(ctx, uploadKeyRecord, key, fresh); {
		case err == nil:
			return fresh, nil
		case !errors.Is(err, storage.ErrConflict): // a conflict: another replica was faster, and its key counts
			return nil, err
		}
	}
}
