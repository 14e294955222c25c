package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"trow/storage"
)

// remedies say what to do about errors of etcd that stay until an administrator acts. etcd refuses the request, so
// nothing was changed; except for NOSPACE, which also answers the request that fills the quota and is carried out.
// %[1]s stands for the prefix.
var remedies = []struct {
	err    error
	remedy string
}{
	{rpctypes.ErrNoSpace, "its database has reached the quota (alarm NOSPACE): run etcdctl compact REVISION, etcdctl " +
		"defrag --cluster and etcdctl alarm disarm; or raise --quota-backend-bytes. Compact automatically with " +
		"--auto-compaction-retention=1h"},
	{rpctypes.ErrPermissionDenied, "grant the user the keys that begin with %[1]q: etcdctl role grant-permission " +
		"ROLE --prefix=true readwrite %[1]s"},
	{rpctypes.ErrAuthFailed, "check the user and the file with the password"},
	{rpctypes.ErrUserEmpty, "it wants a user: set the user and the file with the password"},
	{rpctypes.ErrAuthNotEnabled, "a user is set, but authentication is not enabled: etcdctl auth enable; or set no " +
		"user"},
	{rpctypes.ErrInvalidAuthToken, "the user was changed, or its token is not accepted: check the user and the " +
		"password"},
	{rpctypes.ErrRequestTooLarge, "--max-request-bytes must be at least 1572864, its default"},
	{rpctypes.ErrTooManyOps, "--max-txn-ops must be at least 128, its default"},
	{rpctypes.ErrCompacted, "it was compacted faster than it could be read; if this happens often: " +
		"--auto-compaction-mode=periodic --auto-compaction-retention=1h"},
	{rpctypes.ErrCorrupt, "the cluster found its data corrupt (alarm CORRUPT): replace the member that etcdctl " +
		"endpoint hashkv --cluster shows to differ"},
}

// stays reports whether etcd has refused a request for a reason that stays.
func stays(err error) bool {
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return true
		}
	}
	return false
}

// gone reports whether a revision cannot be read, now or later.
func gone(err error) bool {
	return errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev)
}

// explain makes an error for people: where etcd is, what it says, and what to do about it.
func (j *Journal) explain(err error) error {
	at := "etcd at " + strings.Join(j.options.Endpoints, ",")
	if errors.Is(err, storage.ErrClosed) || j.ctx != nil && j.ctx.Err() != nil {
		return fmt.Errorf("%s: %w", at, storage.ErrClosed)
	}
	if errors.Is(err, errMoved) {
		return err
	}
	for _, r := range remedies {
		if !errors.Is(err, r.err) {
			continue
		}
		if r.err == rpctypes.ErrNoSpace {
			err = fmt.Errorf("%w (%w)", storage.ErrFull, err)
		}
		remedy := r.remedy
		if strings.Contains(remedy, "%") {
			remedy = fmt.Sprintf(remedy, j.keys.prefix)
		}
		return fmt.Errorf("%s: %w; %s", at, err, remedy)
	}
	if unanswered(err) {
		err = fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
	}
	if failed := j.failed.Load(); failed != nil {
		err = fmt.Errorf("%w (the last connection failed: %w)", err, *failed)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: no answer in time: %w", at, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// unanswered reports whether an error means that etcd did not answer, or answered that it is unavailable for now.
func unanswered(err error) bool {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code() == codes.Unavailable
	}
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.Unavailable
}
