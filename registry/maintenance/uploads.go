package maintenance

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"

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

// uploadKeyFile is the file of UploadKey, in the data directory.
const uploadKeyFile = "upload.key"

// UploadKey is the key that authenticates the IDs of uploads, so that those from before a restart can be continued. It
// is made at the first start. Without a file that can be used the key is a new one, and a warning is logged: clients
// that are pushing at that time have to begin again, which is no reason not to start.
func (d *Data) UploadKey() []byte {
	if d.readOnly != "" {
		key := make([]byte, sha256.Size) // there are no uploads
		rand.Read(key)                   // never fails
		return key
	}
	key, err := uploadKey(d.options.DataDir)
	if err != nil {
		d.log.Warn().Err(err).Msg("the key of upload IDs cannot be kept: pushes that are under way at a restart " +
			"have to begin again")
	}
	return key
}

// uploadKey reads the key, or makes it. The key is of use even if there is an error.
func uploadKey(dir string) ([]byte, error) {
	fresh := make([]byte, sha256.Size)
	rand.Read(fresh) // never fails
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fresh, err
	}
	defer root.Close()
	key, err := files.ReadIn(root, uploadKeyFile, sha256.Size)
	if err == nil && len(key) == sha256.Size {
		return key, nil
	}
	var damaged error
	if !errors.Is(err, fs.ErrNotExist) {
		damaged = fmt.Errorf("%s: it is damaged, and was replaced", uploadKeyFile)
	}
	return fresh, errors.Join(damaged, files.Write(root, uploadKeyFile, fresh, 0o600))
}
