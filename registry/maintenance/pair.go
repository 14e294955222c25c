package maintenance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/spf13/pflag"

	"trow/registry/server"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/etcd"
	"trow/storage/s3"
)

// Engines are the settings of where the facts and the bytes are. A server, a migration and a rebuild open them here.
// Three pairs are supported: both in a data directory; the facts in a data directory, and the bytes in S3; etcd and S3.
type Engines struct {
	DataDir string
	// Journal and Blobs are URLs of engines; empty: they are in the data directory.
	Journal, Blobs                     string
	JournalCA, JournalCert, JournalKey string // files
	JournalUser, JournalPassword       string // the second is a file
	BlobsCA                            string // file
}

// Tests replace these functions: permissions do not stop root, as which tests may run, and there are no services.
var (
	openJournal = func(dir string) (storage.Journal, error) { return journalOr(bolt.Open(dir)) }
	openEtcd    = func(ctx context.Context, o etcd.Options) (storage.Journal, error) {
		return journalOr(etcd.Open(ctx, o))
	}
	openS3 = func(ctx context.Context, o s3.Options) (storage.Blobs, error) { return blobsOr(s3.Open(ctx, o)) }
)

// journalOr returns j as an interface, or an untyped nil with the error: a nil pointer in an interface is not nil.
func journalOr[J storage.Journal](j J, err error) (storage.Journal, error) {
	if err != nil {
		return nil, err
	}
	return j, nil
}

// blobsOr is journalOr for bytes.
func blobsOr[B storage.Blobs](b B, err error) (storage.Blobs, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// AddEngineFlags registers the settings.
func (e *Engines) AddEngineFlags(fs *pflag.FlagSet) {
	AddDataDirFlag(fs, &e.DataDir)
	fs.StringVar(&e.Journal, "journal", "", "where the facts are: empty for data-dir, or "+
		"etcd://HOST:PORT[,HOST:PORT...]/PREFIX (etcds:// for TLS), which several servers share")
	fs.StringVar(&e.Blobs, "blobs", "", "where the content is: empty for data-dir, or s3://BUCKET/PREFIX with "+
		"?endpoint=https://HOST, region and path-style=true as parameters; credentials as for other clients of S3, "+
		"such as AWS_ACCESS_KEY_ID")
	fs.StringVar(&e.JournalCA, "journal-ca-file", "", "CA of etcd, PEM; empty: those of the system")
	fs.StringVar(&e.JournalCert, "journal-cert-file", "",
		"client certificate for etcd, PEM; read again for each connection")
	fs.StringVar(&e.JournalKey, "journal-key-file", "", "its key")
	fs.StringVar(&e.JournalUser, "journal-user", "", "user of etcd")
	fs.StringVar(&e.JournalPassword, "journal-password-file", "", "file with the password of journal-user")
	fs.StringVar(&e.BlobsCA, "blobs-ca-file", "", "CA of the S3 service, PEM, beside those of the system")
}

// AddDataDirFlag registers the setting data-dir alone, for commands that act on a server's data directory.
func AddDataDirFlag(fs *pflag.FlagSet, dir *string) {
	fs.StringVarP(dir, "data-dir", "d", "./data", "data directory of the server")
}

// ValidateEngines reports the first invalid setting, or a pair that is not supported. to is the prefix of the names of
// the settings: empty, or "to-" for the flags of trow migrate. No error quotes a credential.
func (e *Engines) ValidateEngines(to string) error {
	for setting, file := range map[string]string{"journal-ca-file": e.JournalCA, "journal-cert-file": e.JournalCert,
		"journal-key-file": e.JournalKey} {
		if file != "" && !strings.HasPrefix(e.Journal, "etcds://") {
			return fmt.Errorf("%s%s: it is for a journal in etcd over TLS; set %[1]sjournal to "+
				"etcds://HOST:PORT/PREFIX", to,
				setting)
		}
	}
	switch {
	case (e.JournalCert == "") != (e.JournalKey == ""):
		return fmt.Errorf("%sjournal-cert-file: a client certificate needs its key; set %[1]sjournal-key-file as "+
			"well, or neither", to)
	case (e.JournalUser == "") != (e.JournalPassword == ""):
		return fmt.Errorf("%sjournal-user: a user needs a password; set %[1]sjournal-password-file as well, or neither",
			to)
	case e.JournalUser != "" && e.Journal == "":
		return fmt.Errorf("%sjournal-user: it is for a journal in etcd; set %[1]sjournal to etcd://HOST:PORT/PREFIX",
			to)
	case e.BlobsCA != "" && e.Blobs == "":
		return fmt.Errorf("%sblobs-ca-file: it is for blobs in S3; set %[1]sblobs to "+
			"s3://BUCKET/PREFIX?endpoint=https://HOST", to)
	}
	if e.Journal != "" {
		if _, err := e.etcd(); err != nil {
			return fmt.Errorf("%sjournal: %w", to, err)
		}
	}
	if e.Blobs != "" {
		if _, err := e.s3(); err != nil {
			return fmt.Errorf("%sblobs: %w", to, err)
		}
	}
	if e.Journal != "" && e.Blobs == "" {
		return fmt.Errorf("%sblobs: a journal in etcd is for several servers, and a data directory is of one: another "+
			"server would not find the bytes; set %[1]sblobs to s3://BUCKET/PREFIX?endpoint=https://HOST", to)
	}
	return nil
}

// etcd returns the options of the engine etcd.
func (e *Engines) etcd() (etcd.Options, error) {
	o, err := etcd.ParseURL(e.Journal)
	o.CAFile, o.CertFile, o.KeyFile = e.JournalCA, e.JournalCert, e.JournalKey
	o.User, o.PasswordFile = e.JournalUser, e.JournalPassword
	return o, err
}

// s3 returns the options of the engine s3.
func (e *Engines) s3() (s3.Options, error) {
	o, err := s3.ParseURL(e.Blobs)
	o.CAFile = cmp.Or(e.BlobsCA, o.CAFile)
	return o, err
}

// Hosts returns the hosts, without ports, of the services of journal and blobs, for which a server waits at its start.
func (e *Engines) Hosts() (hosts []string) {
	if o, err := e.etcd(); err == nil {
		for _, endpoint := range o.Endpoints {
			if host, _, err := net.SplitHostPort(endpoint); err == nil {
				hosts = append(hosts, host)
			}
		}
	}
	if o, err := e.s3(); err == nil {
		if u, err := url.Parse(o.Endpoint); err == nil && u.Hostname() != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}

// Where returns where the data is, for messages. It has no credentials, because the URLs may have none.
func (e *Engines) Where() string {
	switch {
	case e.Journal != "":
		return e.Journal + " and " + e.Blobs
	case e.Blobs != "":
		return e.DataDir + " and " + e.Blobs
	}
	return e.DataDir
}

// Settings returns where the data is, in terms of a server's settings. A migration records it at its source.
func (e *Engines) Settings() string {
	switch {
	case e.Journal != "":
		return "journal " + e.Journal + " with blobs " + e.Blobs
	case e.Blobs != "":
		return "data directory " + e.DataDir + " with blobs " + e.Blobs
	}
	return "data directory " + e.DataDir
}

// names returns where the journal is, and where the bytes are, for messages.
func (e *Engines) names() (journal, blobs string) {
	journal, blobs = "the journal in "+e.DataDir, "the data directory "+e.DataDir
	if e.Journal != "" {
		journal = "the journal " + e.Journal
	}
	if e.Blobs != "" {
		blobs = "the blobs " + e.Blobs
	}
	return journal, blobs
}

// Use are the options of engines. Each engine ignores those that are not about it.
type Use struct {
	ReadOnly   bool
	Reserve    func(int64) int64 // of the space of a file system, what uploads leave free; nil: nothing
	Uploads    *storage.Uploads  // counts the uploads for quotas; nil: they do not count
	MaxUploads int               // 0: no bound
	Memory     int64             // for the parts of uploads to S3, in bytes; it is at least two parts
	Warn       func(error)       // is called with errors that an engine has handled, and its administrator must know
}

// share divides the memory that the process may use: uploads to S3 take that part of it.
const share = 8

// Memory returns how many bytes of memory uploads to S3 take for their parts.
func Memory() int64 { return server.Memory() / share }

// OpenJournal opens the journal; closeJournal closes it. Errors: those of the engine, with the remedy.
func (e *Engines) OpenJournal(ctx context.Context, u Use) (storage.Journal, error) {
	switch {
	case e.Journal == "" && u.ReadOnly:
		return journalOr(bolt.OpenReadOnly(e.DataDir))
	case e.Journal == "":
		return openJournal(e.DataDir)
	}
	o, err := e.etcd()
	if err != nil {
		return nil, err
	}
	o.Warn = u.Warn
	j, err := openEtcd(ctx, o)
	if err == nil && u.ReadOnly {
		j = readOnlyJournal{j}
	}
	return j, err
}

// OpenBlobs opens the bytes. r has the places of those in S3. Errors: those of the engine, with the remedy.
func (e *Engines) OpenBlobs(ctx context.Context, u Use, r storage.Records) (storage.Blobs, error) {
	if e.Blobs == "" {
		return blobsOr(disk.Open(e.DataDir, disk.Options{Reserve: u.Reserve, MaxUploads: u.MaxUploads,
			Uploads:  u.Uploads,
			ReadOnly: u.ReadOnly}))
	}
	o, err := e.s3()
	if err != nil {
		return nil, err
	}
	o.Records, o.Uploads, o.MaxUploads, o.ReadOnly, o.Warn = r, u.Uploads, u.MaxUploads, u.ReadOnly, u.Warn
	o.Memory = max(u.Memory, 2*o.PartSize) // the least with which the engine works: see Use.Memory
	return openS3(ctx, o)
}

// Pair is an open journal and open bytes, with the index between them: the facts say which object has which bytes.
type Pair struct {
	Journal storage.Journal
	Index   *storage.Index
	Blobs   storage.Blobs
}

// Open opens a pair, without a server. j is the journal; nil: that of the settings. The caller closes the Pair. Errors:
// those of the engines, with the remedy; as [storage.OpenIndex].
func (e *Engines) Open(ctx context.Context, u Use, j storage.Journal, o storage.IndexOptions) (p *Pair, err error) {
	p = &Pair{Journal: j}
	defer func() {
		if err != nil {
			p, err = nil, errors.Join(err, p.Close())
		}
	}()
	if j == nil {
		if p.Journal, err = e.OpenJournal(ctx, u); err != nil {
			return p, err
		}
	}
	o.Placed, o.Warn, o.Uploads = e.Blobs != "", u.Warn, u.Uploads
	if p.Index, err = storage.OpenIndex(ctx, p.Journal, o); err != nil {
		return p, err
	}
	p.Blobs, err = e.OpenBlobs(ctx, u, p.Index)
	return p, err
}

// Close closes the index, and then the journal. Errors: those of the journal.
func (p *Pair) Close() error {
	if p.Index != nil {
		p.Index.Close()
	}
	return closeJournal(p.Journal)
}

// closeJournal closes a journal, which may be nil.
func closeJournal(j storage.Journal) error {
	if c, ok := j.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}

// readOnlyJournal refuses commits, for a read-only server.
type readOnlyJournal struct{ storage.Journal }

// Commit implements [storage.Journal].
func (readOnlyJournal) Commit(context.Context, ...storage.Batch) (storage.Revision, error) {
	return 0, fmt.Errorf("journal: %w", storage.ErrReadOnly)
}

// Close closes what is below.
func (j readOnlyJournal) Close() error {
	return closeJournal(j.Journal)
}
