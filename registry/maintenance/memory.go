package maintenance

import (
	"context"
	"strings"
	"time"

	"trow/registry/server"
	"trow/registry/size"
	"trow/storage"
)

// Share is an amount of memory: a share of what the process may use, such as 40%, or a number of bytes. It is a
// pflag.Value.
type Share struct {
	text   string
	amount size.Amount
}

// String returns the amount as it was set.
func (s *Share) String() string { return s.text }

// Type names the value in error messages.
func (s *Share) Type() string { return "size (bytes, such as 512Mi, or a percentage from 1% to 90%)" }

// Set parses an amount. A percentage is a whole number from 1 to 90.
func (s *Share) Set(text string) error {
	amount, err := size.ParseAmount(text, 1, 90)
	if err != nil {
		return err
	}
	*s = Share{text, amount}
	return nil
}

// Of returns the amount for a process that may use memory bytes; 0: no limit.
func (s *Share) Of(memory int64) int64 { return s.amount.Of(memory) }

// limits are the bounds of the index.
func (o *Options) limits() storage.Limits {
	return storage.Limits{Tags: o.MaxTags, Repos: o.MaxRepositories, Bytes: o.MaxIndex.Of(server.Memory())}
}

// refusedFor is how long after a refusal the index counts as full: a client that is refused usually tries again.
const refusedFor = time.Minute

// refusing returns the settings because of which new names were refused lately, in all repositories. A limit on the
// tags of one repository is not among them: that is a matter of its clients, which get an error.
func refusing(l storage.Load) (settings []string) {
	for _, s := range []struct {
		limit   storage.Limit
		setting string
	}{{storage.LimitRepos, "max-repositories"}, {storage.LimitBytes, "max-index"}} {
		if at, ok := l.Refused[s.limit]; ok && time.Since(at) < refusedFor {
			settings = append(settings, s.setting)
		}
	}
	return settings
}

// watchIndex logs once that new names are refused because the index is full, and once that they are accepted again.
func (d *Data) watchIndex(context.Context) {
	load := d.loaded.Load().index.Load()
	full := strings.Join(refusing(load), ", ")
	switch {
	case full != "" && d.indexFull == "":
		d.log.Error().Str("settings", full).Int64("bytes", load.Bytes).Int("repositories", load.Repos).
			Msg("the index is full: new repositories, tags, manifests and blobs are refused, everything else " +
				"continues; delete tags and manifests, or raise the limit")
	case full == "" && d.indexFull != "":
		d.log.Info().Int64("bytes", load.Bytes).Msg("no new name was refused for a minute: the index has room again")
	}
	d.indexFull = full
}

// IndexCheck is a line of /readyz?verbose: ok reports whether new names are accepted.
func (d *Data) IndexCheck() (ok bool, text string) {
	l := d.loaded.Load()
	if l == nil {
		return false, "" // no line while it is loading
	}
	load := l.index.Load()
	text = "index: " + size.Format(load.Bytes)
	if load.Limits.Bytes > 0 {
		text += " of " + size.Format(load.Limits.Bytes)
	}
	if full := refusing(load); len(full) > 0 {
		return false, text + ", new names are refused (setting " + strings.Join(full, ", ") + ")"
	}
	return true, text
}
