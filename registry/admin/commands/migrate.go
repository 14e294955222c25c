package commands

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"trow/registry/admin"
	"trow/registry/migration"
	"trow/registry/size"
	"trow/storage/migrate"
)

func (p Program) migrateCommand() *cobra.Command {
	var dryRun, cancel bool
	var parallel int
	var o output
	target := map[string]*string{}
	cmd := p.onServer(&cobra.Command{
		Use:   "migrate",
		Short: "Move all that a server holds to etcd and S3, or back, while it runs",
		Long: `migrate copies everything to another journal and other blobs, and follows the changes that clients make
meanwhile. When all is there, the server refuses writes, for good, and says where to; the rest is copied,
and both sides are compared. Pulls and verdicts go on. Then start servers at the target, with the settings
journal and blobs, or data-dir. Tags keep their order, times and histories. Uploads that are open at the
switch are lost: clients send them again.

If it is stopped, or fails, run it again: it goes on. Until then nothing is collected at the source, and no
server starts at the target. --cancel gives it up, which is possible before the switch.

  trow migrate --to-journal etcd://etcd.example.org:2379/trow \
    --to-blobs 's3://bucket/trow?endpoint=https://s3.example.org'
  trow migrate --to-data /new/data

The server opens the target: paths are those of its machine, and the credentials of S3 those of its
environment (AWS_ACCESS_KEY_ID and so on).`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, c *admin.Client) error {
		q, err := migrateQuery(target, cancel)
		if err != nil {
			return err
		}
		for name, set := range map[string]bool{"dry-run": dryRun, "cancel": cancel} {
			if set {
				q.Set(name, "")
			}
		}
		q.Set("parallel", strconv.Itoa(parallel))
		var done migration.Outcome
		err = c.Run(cmd.Context(), "migrate", q, progress(func(now migrate.Progress) {
			printMigrating(cmd.ErrOrStderr(), now)
		}), &done)
		switch {
		case err != nil:
			return err
		case o.json():
			err = printJSON(cmd.OutOrStdout(), done)
		default:
			printMigrated(cmd.OutOrStdout(), done)
		}
		if err == nil && done.Moved != nil && len(done.Moved.Lost) > 0 {
			return ErrDamaged
		}
		return err
	})
	o.addFlags(cmd, "")
	f := cmd.Flags()
	for _, flag := range [][2]string{
		{"to-data", "data directory to move to"},
		{"to-journal", "journal to move to, etcd://HOST:PORT/PREFIX, or etcds:// for TLS"},
		{"to-blobs", "blobs to move to, s3://BUCKET/PREFIX?endpoint=URL"},
		{"to-journal-ca-file", "CA of etcd, PEM"},
		{"to-journal-cert-file", "client certificate for etcd, PEM"},
		{"to-journal-key-file", "its key"},
		{"to-journal-user", "user of etcd"},
		{"to-journal-password-file", "file with the password of that user"},
		{"to-blobs-ca-file", "CA of the S3 service, PEM"},
	} {
		target[flag[0]] = f.String(flag[0], "", flag[1])
	}
	f.IntVar(&parallel, "parallel", 8, "blobs that are copied at once")
	f.BoolVar(&dryRun, "dry-run", false, "only report what would be copied, and about how long it takes")
	f.BoolVar(&cancel, "cancel", false, "give a migration up that was not switched; its target must be emptied")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "cancel")
	return cmd
}

// migrateQuery is the query of the job. Paths are made absolute: the server works in another directory.
func migrateQuery(target map[string]*string, cancel bool) (url.Values, error) {
	q := url.Values{}
	for flag, value := range target {
		name := flag[len("to-"):]
		if *value == "" {
			continue
		}
		if cancel {
			return nil, fmt.Errorf("%s: --cancel gives the migration up that was begun, wherever it goes; leave out "+
				"--%s",
				flag, flag)
		}
		text := *value
		if name == "data" || strings.HasSuffix(name, "-file") {
			var err error
			if text, err = filepath.Abs(text); err != nil {
				return nil, fmt.Errorf("%s: %w", flag, err)
			}
		}
		q.Set(name, text)
	}
	if len(q) == 0 && !cancel {
		return nil, errors.New("name the target: --to-journal etcd://HOST:PORT/PREFIX and " +
			"--to-blobs s3://BUCKET/PREFIX?endpoint=https://HOST, or --to-data DIR")
	}
	return q, nil
}

func printMigrating(w io.Writer, now migrate.Progress) {
	there := now.There + now.Copied
	what := map[migrate.Stage]string{migrate.Copying: "Copied", migrate.Switched: "Writes are refused; copied",
		migrate.Comparing: "Comparing; copied", migrate.Done: "Copied"}[now.Stage]
	fmt.Fprintf(w, "%s %d of %s (%s of %s) and %s\n", what, there,
		count(now.Contents, "blob or manifest", "blobs and manifests"), size.Format(now.Sent), size.Format(now.Bytes),
		count(now.Facts, "fact", ""))
}

func printMigrated(w io.Writer, done migration.Outcome) {
	switch {
	case done.None:
		fmt.Fprintln(w, "There is no migration to give up.")
	case done.Plan != nil:
		printMigrationPlan(w, done.Plan)
	case done.Moved == nil:
		fmt.Fprintf(w, "Gave up the migration to %s. The collector goes on. Empty the target before it is used.\n",
			done.Cancelled)
	case done.Moved.Again:
		fmt.Fprintln(w, "Everything had moved before. Start servers at the target.")
	default:
		m := done.Moved
		fmt.Fprintf(w, "Moved %s in %s: copied %d (%s), %d were there; %s. Both sides were compared.\n",
			count(m.Contents, "blob or manifest", "blobs and manifests"), m.Took.Round(time.Second), m.Copied,
			size.Format(m.Sent), m.There, count(m.Facts, "fact", ""))
		fmt.Fprintln(w, "This server refuses writes from now on, for good. Start servers at the target. "+
			"Uploads that were open are lost: clients send them again.")
		for _, l := range m.Lost {
			fmt.Fprintf(w, "damaged  %s: %s\n", l.Digest, l.Reason)
		}
		if len(m.Lost) > 0 {
			fmt.Fprintln(w, "They were damaged here, and are quarantined at the target. "+
				"To repair them, push the images that contain them again.")
		}
	}
}

func printMigrationPlan(w io.Writer, p *migrate.Plan) {
	fmt.Fprintf(w, "Would copy %s, %s, of %s with %s and %s",
		count(p.Contents, "blob or manifest", "blobs and manifests"), size.Format(p.Bytes),
		count(p.Repos, "repository", ""), count(p.Manifests, "manifest", ""), count(p.Tags, "tag", ""))
	if p.Estimate > 0 {
		fmt.Fprintf(w, ", in about %s", max(p.Estimate, time.Second).Round(time.Second))
	}
	fmt.Fprintln(w, ". Uploads that are open at the switch would be lost: clients send them again.")
	if p.Lost > 0 {
		fmt.Fprintf(w, "%s quarantined, and stay so.\n", count(p.Lost, "of them is", "of them are"))
	}
}
