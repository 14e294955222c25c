package maintenance

import (
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"trow/registry/address"
	"trow/registry/audit"
	"trow/registry/size"
)

// Options are the settings of the data directory and of the work on it.
type Options struct {
	Engines
	// RedirectNetworks are the addresses and networks whose clients read large blobs from the service that Blobs names.
	RedirectNetworks []string
	Adopt            string  // the identity of a journal whose blobs are to be those that Blobs names
	ReadOnly         bool    // serve what is there, and write nothing; see readonly.go
	Reserve          Reserve // space that uploads leave free
	MaxUploads       int
	// MaxUploadsPerClient is what the setting says; UploadsPerClient is what counts.
	MaxUploadsPerClient int
	UploadTimeout       time.Duration

	// MaxTags, MaxRepositories and MaxIndex bound what the index holds; 0: no bound.
	MaxTags         int // of one repository
	MaxRepositories int
	MaxIndex        Share // estimated memory of the index

	GCInterval    time.Duration // 0: never automatically
	GCGrace       time.Duration
	ScrubInterval time.Duration          // 0: never automatically
	ScrubRate     resource.QuantityValue // bytes per second; 0: as fast as possible

	// Log and Audit are set by the program. Audit is called for each tag or manifest that retention removes.
	Log   zerolog.Logger
	Audit func(audit.Event)
}

// AddFlags registers the settings.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	o.ScrubRate = resource.QuantityValue{Quantity: resource.MustParse("16Mi")}
	_ = o.Reserve.Set("5%,1Gi") // valid
	o.AddEngineFlags(fs)
	fs.StringSliceVar(&o.RedirectNetworks, "blobs-redirect-networks", nil, "addresses and networks (10.0.0.0/8) of "+
		"clients that are redirected to the S3 service for blobs of more than 16 KiB, with a URL that is valid for 10 "+
		"minutes; they must reach its endpoint by the name in blobs, and trust its certificate; empty: none")
	fs.StringVar(&o.Adopt, "adopt", "", "identity of the journal whose content is to be that of blobs from now on; "+
		"a start with two that do not belong together is refused, and names it")
	fs.BoolVar(&o.ReadOnly, "read-only", false,
		"serve pulls and verdicts alone, and write nothing to data-dir; so does a server that may not write there")
	fs.Var(&o.Reserve, "reserve", "space that uploads leave free, in bytes or percent; of several the smallest; 0: "+
		"none")
	fs.IntVar(&o.MaxUploads, "max-uploads", 10000,
		"uploads with bytes that may be open at once; for further ones an idle one is dropped, of the client with most")
	fs.IntVar(&o.MaxUploadsPerClient, "max-uploads-per-client", 0,
		"how many of them one login, or without a login one "+
			"address, may have; for further ones its own that was idle the longest is dropped; 0: a tenth of "+
			"max-uploads, at least 16")
	fs.DurationVar(&o.UploadTimeout, "upload-timeout", 6*time.Hour, "time after which an idle upload is dropped")
	_ = o.MaxIndex.Set("40%") // valid; while the state is loaded again there are two
	fs.IntVar(&o.MaxTags, "max-tags", 100_000,
		"tags that a repository may have; further ones are answered 507; 0: no limit")
	fs.IntVar(&o.MaxRepositories, "max-repositories", 200_000,
		"repositories that there may be; further ones are answered 507; 0: no limit")
	fs.Var(&o.MaxIndex, "max-index", "memory that the index may take, in bytes or in percent of what the process may "+
		"use; when it is full, new repositories, tags, manifests and blobs are answered 507; 0: no limit")
	fs.DurationVar(&o.GCInterval, "gc-interval", time.Hour,
		"time between two garbage collections; 0: never automatically")
	fs.DurationVar(&o.GCGrace, "gc-grace", 6*time.Hour,
		"time for which a blob without a manifest is kept, for a push that is under way")
	fs.DurationVar(&o.ScrubInterval, "scrub-interval", 7*24*time.Hour,
		"time between two reads of all content to compare it with its digests, in S3 of the names and sizes alone; 0: "+
			"never automatically")
	fs.Var(&o.ScrubRate, "scrub-rate", "bytes per second that a scrub reads; 0: as fast as possible")
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	switch {
	case o.DataDir == "":
		return fmt.Errorf("data-dir: it is empty; want a directory")
	case o.UploadTimeout < time.Minute:
		return fmt.Errorf("upload-timeout: %s is too short; want at least 1m", o.UploadTimeout)
	case o.MaxUploads < 1:
		return fmt.Errorf("max-uploads: %d is too low; want at least 1", o.MaxUploads)
	case o.MaxUploadsPerClient < 0:
		return fmt.Errorf("max-uploads-per-client: %d is negative; want at least 1, or 0 for a tenth of max-uploads",
			o.MaxUploadsPerClient)
	case o.MaxTags < 0:
		return fmt.Errorf("max-tags: %d is negative; want a number of tags, or 0 for no limit", o.MaxTags)
	case o.MaxRepositories < 0:
		return fmt.Errorf("max-repositories: %d is negative; want a number of repositories, or 0 for no limit",
			o.MaxRepositories)
	case o.GCInterval < 0 || o.GCInterval > 0 && o.GCInterval < time.Second:
		return fmt.Errorf("gc-interval: %s is too short; want at least 1s, or 0 for never", o.GCInterval)
	case o.GCGrace < time.Second:
		return fmt.Errorf("gc-grace: %s is too short; want at least 1s, and minutes where clients push", o.GCGrace)
	case o.ScrubInterval < 0 || o.ScrubInterval > 0 && o.ScrubInterval < time.Minute:
		return fmt.Errorf("scrub-interval: %s is too short; want at least 1m, or 0 for never", o.ScrubInterval)
	case o.ScrubRate.Sign() < 0:
		return fmt.Errorf("scrub-rate: %s is negative; want bytes per second, such as 16Mi", &o.ScrubRate)
	}
	if _, err := address.ParseNetworks(o.RedirectNetworks); err != nil {
		return fmt.Errorf("blobs-redirect-networks: %w", err)
	}
	if len(o.RedirectNetworks) > 0 && o.Blobs == "" {
		return fmt.Errorf("blobs-redirect-networks: a data directory has no URL that clients could read from; " +
			"set blobs to s3://BUCKET/PREFIX?endpoint=https://HOST, or remove the networks")
	}
	return o.ValidateEngines("")
}

// Redirected returns RedirectNetworks. The options are valid.
func (o *Options) Redirected() address.Networks {
	all, _ := address.ParseNetworks(o.RedirectNetworks)
	return all
}

// Reserve is a list of sizes and percentages of a file system, of which the smallest counts: "5%,1Gi". It is a
// pflag.Value.
type Reserve struct {
	text    string
	amounts []size.Amount
}

// String returns the list as it was set.
func (r *Reserve) String() string { return r.text }

// Type names the value in error messages.
func (r *Reserve) Type() string {
	return "reserve (sizes and percentages from 0% to 50%, such as 5%,1Gi)"
}

// Set parses a list. Percentages are whole numbers from 0 to 50.
func (r *Reserve) Set(text string) error {
	next := Reserve{text: text}
	for part := range strings.SplitSeq(text, ",") {
		amount, err := size.ParseAmount(strings.TrimSpace(part), 0, 50)
		if err != nil {
			return err
		}
		next.amounts = append(next.amounts, amount)
	}
	*r = next
	return nil
}

// Of returns the reserve of a file system of total bytes.
func (r *Reserve) Of(total int64) int64 {
	if len(r.amounts) == 0 {
		return 0
	}
	least := r.amounts[0].Of(total)
	for _, a := range r.amounts[1:] {
		least = min(least, a.Of(total))
	}
	return least
}
