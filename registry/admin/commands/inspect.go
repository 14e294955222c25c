package commands

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"trow/registry/inventory"
	"trow/registry/platform"
	"trow/registry/size"
)

// inspection is what inspect knows of a manifest.
type inspection struct {
	Repository   string            `json:"repository"`
	Digest       digest.Digest     `json:"digest"`
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Bytes        int64             `json:"bytes"` // of the manifest alone
	Subject      digest.Digest     `json:"subject,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platforms    []part            `json:"platforms,omitempty"`
	Config       *v1.Image         `json:"config,omitempty"`
	Layers       []part            `json:"layers,omitempty"`
	Referrers    []part            `json:"referrers"`
}

// part is something that an image consists of, or that refers to it.
type part struct {
	Digest       digest.Digest `json:"digest"`
	MediaType    string        `json:"mediaType"`
	ArtifactType string        `json:"artifactType,omitempty"`
	Platform     string        `json:"platform,omitempty"`
	Bytes        int64         `json:"bytes"`
}

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex ||
		mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

func (p Program) inspectCommand() *cobra.Command {
	var o output
	var onlyFor string
	cmd := &cobra.Command{
		Use:   "inspect REFERENCE",
		Short: "Show what an image consists of: platforms, layers, configuration, referrers",
		Long: `inspect shows a manifest without pulling its layers. Without a tag or a digest it shows the tag latest.

` + referenceUsage + exitCodes,
		Example: "  trow inspect team/app:1.0\n  trow inspect docker.io/library/alpine --platform linux/arm64",
		Args:    cobra.ExactArgs(1),
	}
	t := p.target(cmd)
	o.addFlags(cmd, "the digest")
	cmd.Flags().StringVar(&onlyFor, "platform", "", "show the image of an index for this platform, OS/ARCH[/VARIANT]")
	cmd.ValidArgsFunction = completeReference(t, 1, true)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		r, err := parseReference(args[0])
		if err != nil {
			return err
		}
		e, err := t.find(cmd, &r)
		if err != nil {
			return err
		}
		i, err := inspect(cmd, e, r, onlyFor)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s not found; trow tags %s lists the tags", e.name+r.text(), e.name+r.repo)
		case err != nil:
			return err
		case o.json():
			return printJSON(cmd.OutOrStdout(), i)
		case o.quiet:
			return printLines(cmd.OutOrStdout(), []string{i.Digest.String()})
		}
		return i.print(cmd.OutOrStdout())
	})
	return cmd
}

// inspect asks the registry for a manifest and what belongs to it.
func inspect(cmd *cobra.Command, e *endpoint, r reference, name string) (*inspection, error) {
	ctx := cmd.Context()
	m, desc, err := inventory.Fetch(ctx, e.Client, r.repo, r.ref())
	if err != nil {
		return nil, err
	}
	if name != "" && len(m.Manifests) > 0 {
		wanted, err := platform.ParseAll([]string{name})
		if err != nil {
			return nil, err
		}
		// An entry with exactly this platform is preferred: linux/amd64/v3 may stand beside linux/amd64.
		at := slices.IndexFunc(m.Manifests, func(d v1.Descriptor) bool { return platform.Text(d.Platform) == name })
		if at < 0 {
			at = slices.IndexFunc(m.Manifests, func(d v1.Descriptor) bool {
				return d.Platform != nil && platform.Wanted(wanted, *d.Platform)
			})
		}
		if at < 0 {
			var all []string
			for _, d := range m.Manifests {
				all = append(all, platformOf(d.Platform))
			}
			return nil, fmt.Errorf("platform: the index has no %q; it has %s", name, strings.Join(all, ", "))
		}
		d := m.Manifests[at].Digest
		if m, desc, err = inventory.Fetch(ctx, e.Client, r.repo, d.String()); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("platform: the registry does not have %s, the image of the index for %s",
				d, name)
		} else if err != nil {
			return nil, err
		}
	}
	i := &inspection{Repository: e.name + r.repo, Digest: desc.Digest, MediaType: desc.MediaType,
		ArtifactType: m.ArtifactType, Bytes: desc.Size, Annotations: m.Annotations, Referrers: []part{}}
	if m.Subject != nil {
		i.Subject = m.Subject.Digest
	}
	for _, d := range m.Manifests {
		bytes, err := wholeSize(cmd, e, r.repo, d)
		if err != nil {
			return nil, err
		}
		i.Platforms = append(i.Platforms, part{d.Digest, d.MediaType, d.ArtifactType, platformOf(d.Platform), bytes})
	}
	for _, d := range append(m.Layers, m.Blobs...) {
		i.Layers = append(i.Layers, part{Digest: d.Digest, MediaType: d.MediaType, Bytes: d.Size})
	}
	if err := i.readConfig(cmd, e, r.repo, m.Config); err != nil {
		return nil, err
	}
	err = e.Referrers(ctx, r.repo, desc, func(page []v1.Descriptor) error {
		for _, d := range page {
			i.Referrers = append(i.Referrers, part{Digest: d.Digest, MediaType: d.MediaType,
				ArtifactType: d.ArtifactType,
				Bytes:        d.Size})
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // a registry without referrers
	}
	return i, err
}

// wholeSize returns the bytes of a platform of an index; 0 if the registry does not hold it. One that cannot be read is
// named, and does not keep the others from being shown.
func wholeSize(cmd *cobra.Command, e *endpoint, repo string, d v1.Descriptor) (int64, error) {
	m, desc, err := inventory.Fetch(cmd.Context(), e.Client, repo, d.Digest.String())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if bad, ok := errors.AsType[*inventory.UnreadableError](err); ok {
		fmt.Fprintln(cmd.ErrOrStderr(), printable(bad.Error()))
		return d.Size, nil
	}
	n := desc.Size
	for _, l := range append(m.Layers, m.Blobs...) {
		n += l.Size
	}
	if m.Config != nil {
		n += m.Config.Size
	}
	return n, err
}

// readConfig reads the configuration of an image. Other artifacts have one of another type, which is not shown.
func (i *inspection) readConfig(cmd *cobra.Command, e *endpoint, repo string, d *v1.Descriptor) error {
	const max = 4 << 20 // bytes; configurations have some thousand
	if d == nil || d.Size > max || d.MediaType != v1.MediaTypeImageConfig &&
		d.MediaType != "application/vnd.docker.container.image.v1+json" {
		return nil
	}
	body, err := e.Blob(cmd.Context(), repo, d.Digest, d.Size)
	if errors.Is(err, fs.ErrNotExist) { // damaged or deleted: the rest is here, and shows what it was
		fmt.Fprintf(cmd.ErrOrStderr(), "configuration %s: the registry does not have it\n", d.Digest)
		return nil
	} else if err != nil {
		return fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, max))
	if err != nil {
		return fmt.Errorf("configuration %s: %w", d.Digest, err)
	}
	var image v1.Image
	if json.Unmarshal(text, &image) == nil { // other configurations have nothing to show
		i.Config = &image
	}
	return nil
}

// platformOf names a platform for people.
func platformOf(p *v1.Platform) string { return cmp.Or(platform.Text(p), "-") }

// print prints for people. The label is as wide as leaves room for a digest in 80 columns.
func (i *inspection) print(w io.Writer) error {
	const label = 9
	facts := [][2]string{{"Name", i.Repository}, {"Digest", i.Digest.String()}, {"Type", i.MediaType},
		{"Artifact", i.ArtifactType}, {"Subject", i.Subject.String()}}
	var environment, labels []string
	if c := i.Config; c != nil {
		created, runsOn := "", ""
		if c.Created != nil && c.Created.Unix() > 0 { // what makes images without a time writes the year 1
			created = moment(c.Created.Unix())
		}
		if c.OS != "" {
			runsOn = platformOf(&c.Platform)
		}
		facts = append(facts, [][2]string{{"Platform", runsOn}, {"Created", created}, {"User", c.Config.User},
			{"Entry", command(c.Config.Entrypoint)}, {"Command", command(c.Config.Cmd)},
			{"Workdir", c.Config.WorkingDir},
			{"Ports", strings.Join(slices.Sorted(maps.Keys(c.Config.ExposedPorts)), " ")}}...)
		environment, labels = c.Config.Env, pairs(c.Config.Labels)
	}
	for _, f := range facts {
		if f[1] != "" {
			fmt.Fprintf(w, "%-*s%s\n", label, f[0], middle(printable(f[1]), max(widthOf(w), noTerminal)-label))
		}
	}
	for _, group := range []struct {
		name string
		all  []string
	}{{"Environment", environment}, {"Labels", labels}, {"Annotations", pairs(i.Annotations)}} {
		if len(group.all) > 0 {
			fmt.Fprintf(w, "\n%s\n", group.name)
		}
		for _, line := range group.all {
			fmt.Fprintf(w, "  %s\n", middle(printable(strings.ReplaceAll(line, "\n", " ")),
				max(widthOf(w), noTerminal)-2))
		}
	}
	for _, group := range []struct {
		name string
		all  []part
	}{{"Platforms", i.Platforms}, {"Layers", i.Layers}, {"Referrers", i.Referrers}} {
		if err := printParts(w, group.name, group.all); err != nil {
			return err
		}
	}
	return nil
}

// command is the words of a command as one line.
func command(words []string) string { return strings.ReplaceAll(strings.Join(words, " "), "\n", " ") }

func pairs(all map[string]string) (lines []string) {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, key+"="+all[key])
	}
	return lines
}

func printParts(w io.Writer, name string, all []part) error {
	if len(all) == 0 {
		return nil
	}
	var bytes int64
	list := table{head: []string{"DIGEST", "SIZE", "TYPE"}, right: " SIZE "}
	for _, p := range all {
		bytes += p.Bytes
		kind := p.MediaType
		switch {
		case p.Platform != "":
			kind = p.Platform
		case p.ArtifactType != "":
			kind = p.ArtifactType
		}
		list.add(short(p.Digest), size.Format(p.Bytes), kind)
	}
	if _, err := fmt.Fprintf(w, "\n%s (%d, %s)\n", name, len(all), size.Format(bytes)); err != nil {
		return err
	}
	return list.print(w, "  ")
}
