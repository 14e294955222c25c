package admission

import "slices"

const (
	// maxWarning bounds a warning, in characters: Kubernetes advises 120.
	maxWarning = 120

	// maxWarnings bounds all warnings of an answer, in characters. Above 4096 the API server cuts and drops.
	maxWarnings = 4096

	// maxTags bounds the tags that a hint lists.
	maxTags = 5
)

// warnings are those of an answer. Each is one line of ASCII.
type warnings struct {
	texts []string
	size  int
}

// add adds a text, unless it is there already or does not fit: half a command is worse than none.
func (w *warnings) add(text string) {
	if text == "" || len(text) > maxWarning || w.size+len(text) > maxWarnings || slices.Contains(w.texts, text) {
		return
	}
	w.texts = append(w.texts, text)
	w.size += len(text)
}

// addCut adds texts whose beginning says enough.
func (w *warnings) addCut(texts []string) {
	for _, text := range texts {
		if len(text) > maxWarning {
			text = text[:maxWarning-3] + "..."
		}
		w.add(text)
	}
}

// addHints adds the hints of the first images that have any. withhold returns what to say instead of tags and digests
// of a repository, "" to name them.
func (w *warnings) addHints(verdicts []Verdict, withhold func(repo string) string) {
	helped := 0
	for i := range verdicts {
		hints := verdicts[i].Hints
		if len(hints) == 0 && !verdicts[i].absent {
			continue
		}
		if helped++; helped > maxSentences {
			return
		}
		instead := ""
		if verdicts[i].absent { // whether or not there are tags to name, so that this says nothing about them
			instead = withhold(verdicts[i].repo)
		}
		if instead != "" {
			hints = hints[:len(hints)-verdicts[i].contents]
		}
		for _, text := range hints {
			w.add(text)
		}
		w.add(instead)
	}
}
