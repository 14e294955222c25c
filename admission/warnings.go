package admission

import (
	"context"
	"slices"
	"strings"
)

const (
	// maxWarning bounds a warning, in characters: Kubernetes advises 120.
	maxWarning = 120

	// maxWarnings bounds all warnings of an answer, in characters. Above 4096 the API server cuts and drops.
	maxWarnings = 4096

	// maxTags bounds the tags that a hint lists.
	maxTags = 5
)

// warnings are an answer's. Each is one line of ASCII.
type warnings struct {
	texts []string
	size  int
}

// add adds a text, but for one that is there already or finds no room: half a command is worse than none.
func (w *warnings) add(text string) {
	if text == "" || len(text) > maxWarning || w.size+len(text) > maxWarnings || slices.Contains(w.texts, text) {
		return
	}
	w.texts = append(w.texts, text)
	w.size += len(text)
}

// addCut adds texts of which the beginning says enough.
func (w *warnings) addCut(texts []string) {
	for _, text := range texts {
		if len(text) > maxWarning {
			text = text[:maxWarning-3] + "..."
		}
		w.add(text)
	}
}

// hint says what helps with the first of the images that need help. What the registry cannot tell now is
// left out.
func (w *Webhook) hint(ctx context.Context, warn *warnings, verdicts []verdict) {
	helped := 0
	for i := range verdicts {
		v := &verdicts[i]
		switch {
		case helped == maxTold:
			return
		case v.absent:
			w.hintAbsent(ctx, warn, v)
		case v.present && v.manifest.Damaged() != "":
			warn.add("damaged here, push it again: " + v.image) // a node may have it all the same
		case v.ruled && v.ref.Short:
			name := v.ref.familiar()
			warn.add(name + " names no host: CRI-O may pull it from elsewhere; write " + hub + "/" + name)
		default:
			continue
		}
		helped++
	}
}

// hintAbsent says how to get a local image that is not there.
func (w *Webhook) hintAbsent(ctx context.Context, warn *warnings, v *verdict) {
	r := v.ref
	if r.Digest == "" {
		warn.add("push it: docker push " + v.image)
	} else if r.Tag != "" {
		if d, found, err := w.images.Resolve(ctx, r.Path, r.Tag); err == nil && found {
			warn.add(r.Path + ":" + r.Tag + " is here as " + d.Digest().String())
		}
	}
	tags, found, err := w.images.Tags(ctx, r.Path, "", maxTags+1)
	if err == nil && found && len(tags) > 0 {
		warn.add(tagList(r.Path, tags))
	}
}

// tagList lists tags as far as they fit into a warning; more than maxTags stand for many. It is empty if none
// fits.
func tagList(repo string, tags []string) string {
	const sep, more = ", ", "..."
	text := ""
	for i, tag := range tags {
		if i == maxTags || len("tags of "+repo+" here: "+text+tag+sep+more) > maxWarning {
			text += more
			break
		}
		text += tag + sep
	}
	if text == more {
		return ""
	}
	return "tags of " + repo + " here: " + strings.TrimSuffix(text, sep)
}
