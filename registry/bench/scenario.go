package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// need is what a scenario reads, as a set.
type need int

const (
	needBlobs need = 1 << iota // the large and the small blob
	needImages
	needTags // all tags; needImages alone does not create any
	needReferrers
	needRepos
)

// operation performs one operation and returns the bytes of content that were transferred, in either direction. If
// check is set, the answers are compared with the content. Errors: whatever failed; errExhausted.
type operation func(check bool) (int64, error)

// errExhausted reports that a phase has used up what was prepared for it.
var errExhausted = errors.New("nothing is left")

// scenario is one kind of operation.
type scenario struct {
	name, about string
	needs       need
	// prepare creates what the phase uses up; nil if it uses up nothing. The warm-up of a phase with prepare is one
	// operation for each connection, so that the timed part has most of what was prepared.
	prepare func(ctx context.Context, r *runner, connections int) error
	// start returns the operation of one connection.
	start func(r *runner, w *worker) (operation, error)
}

// probing as the number of connections means that prepare need only prepare one operation.
const probing = 0

// worker is one connection of a phase.
type worker struct {
	*caller
	rng *rand.Rand
}

func (r *runner) newWorker(ctx context.Context, n int) (*worker, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &worker{caller: r.target.connect(ctx), rng: rand.New(rand.NewPCG(r.options.Seed, uint64(n)))}
	w.conn.setDeadline(time.Now().Add(overtime))
	return w, nil
}

// scenarios lists all scenarios in the order in which they run: those that only read come first.
var scenarios = []scenario{
	{"blob-get-64MiB", "pull of one blob of 64 MiB", needBlobs, nil,
		func(r *runner, w *worker) (operation, error) { return getBlob(r, w, r.content.large), nil }},
	{"blob-get-4KiB", "pull of one blob of 4 KiB", needBlobs, nil,
		func(r *runner, w *worker) (operation, error) { return getBlob(r, w, r.content.small), nil }},
	{"manifest-get-tag", "pull of a manifest by a random tag", needImages | needTags, nil,
		func(r *runner, w *worker) (operation, error) { return readTags(r, w, "GET"), nil }},
	{"manifest-head-tag", "HEAD of a manifest by a random tag, the first request of a pull", needImages | needTags, nil,
		func(r *runner, w *worker) (operation, error) { return readTags(r, w, "HEAD"), nil }},
	{"manifest-get-digest", "pull of a manifest by its digest, a random one of 100", needImages, nil, getByDigest},
	{"blob-head-missing", "HEAD of a blob that does not exist, the first request of a push", needImages, nil,
		headMissing},
	{"tags-list", "a page of 100 tags of the large repository, after a random tag", needImages | needTags, nil,
		listTags},
	{"catalog", "a page of 100 repositories, after a random one", needRepos, nil, listRepos},
	{"referrers", "the 100 referrers of a manifest", needImages | needReferrers, nil, listReferrers},
	{"admission", "a verdict on a pod with three images: POST /validate", needImages | needTags, nil, validate},
	{"blob-push-64MiB", "push of a new blob of 64 MiB: POST, PUT", 0, nil,
		func(r *runner, w *worker) (operation, error) { return pushLarge(r, w, 0), nil }},
	{"blob-push-chunked", "push of a new blob of 64 MiB in PATCHes of 8 MiB", 0, nil,
		func(r *runner, w *worker) (operation, error) { return pushLarge(r, w, r.options.large/8), nil }},
	{"image-push-small", "push of a new image: HEADs, config, 3 layers of 4 to 60 KiB, manifest by tag", 0, nil,
		pushImages},
	{"mount", "mount of a blob of 4 KiB into a new repository", needBlobs, nil, mount},
	{"manifest-delete", "delete of a manifest by its digest; they are pushed before the timed part", 0,
		prepareDeletes, deleteManifests},
}

// acceptField is what a container runtime sends.
var acceptField = field{"Accept", strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json", "*/*"}, ", ")}

// request returns a request for the main repository.
func (r *runner) request(method, rest string, fields ...field) *request {
	return &request{method: method, path: "/v2/" + r.content.repo + rest, repo: r.content.repo, fields: fields}
}
