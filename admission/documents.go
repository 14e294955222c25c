package admission

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// maxStream bounds a stream of manifests, in bytes: ten times the largest object that the API server takes.
const maxStream = 32 << 20

// Document is one object of a stream of manifests.
type Document struct {
	Number     int // of the document in the stream, from 1, not counting empty ones; the items of a List share one
	Line       int // where the document starts, from 1; consecutive JSON values share that of the first
	APIVersion string
	Kind       string
	Namespace  string // as written, may be empty
	Name       string // as written, or the generateName

	// Review is a review of the creation of the object, as a dry run. It is nil for kinds that have no images. For a
	// kind that is not known it is one of a PodTemplate with the images of the pod templates in the object.
	Review *admissionv1.AdmissionReview

	// NotJudged are the paths of other fields of the object, of a kind that is not one of Kubernetes, that may be
	// images: strings, or objects with the parts of a name, that are called image, baseImage, imageName and the like.
	// At most five.
	NotJudged []string

	// Err is why the document cannot be read. Then only Number and Line are set.
	Err error
}

// ReadDocuments reads manifests as kubectl does: YAML documents between lines of ---, or consecutive JSON values; a
// list (List, PodList, whatever has items) stands for its items. It reads at most 32 MiB. A document that cannot be
// read is one with an Err. Errors: those of r, or there is more to read.
func ReadDocuments(r io.Reader) ([]Document, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxStream+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxStream {
		return nil, fmt.Errorf("manifests are larger than %d MiB", maxStream>>20)
	}
	var docs []Document
	number := 0
	for line, part := range split(data) {
		values, err := decodePart(part)
		if err != nil {
			number++
			docs = append(docs, Document{Number: number, Line: line, Err: err})
		}
		for _, v := range values {
			number++
			docs = appendObjects(docs, Document{Number: number, Line: line}, v, manifest{})
		}
	}
	return docs, nil
}

// split yields the parts of a stream between the lines that start with ---, each with the number of its first line,
// from 1. Text after --- on the same line belongs to the part. A line of ... ends a part as well.
func split(data []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		var part []byte
		start, n := 1, 0
		for text := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
			n++
			rest, marker := cutMarker(text)
			if !marker {
				part = append(part, text...)
				continue
			}
			if !yield(start, part) {
				return
			}
			part, start = append([]byte(nil), rest...), n
		}
		yield(start, part)
	}
}

// cutMarker removes the document marker at the start of a line. YAML allows no scalar to contain one there.
func cutMarker(line []byte) (rest []byte, ok bool) {
	if len(line) < 3 || string(line[:3]) != "---" && string(line[:3]) != "..." {
		return nil, false
	}
	rest = bytes.TrimLeft(line[3:], " \t\r\n")
	return rest, len(line) == 3 || len(rest) < len(line)-3
}

// decodePart returns the documents in a part as JSON: several for consecutive JSON values, none for an empty part.
func decodePart(part []byte) ([]jsontext.Value, error) {
	if bytes.HasPrefix(bytes.TrimSpace(part), []byte("{")) {
		if values, err := decodeValues(part); err == nil {
			return values, nil
		} // it may still be YAML, which has braces as well
	}
	v, err := yaml.YAMLToJSONStrict(part)
	if err != nil {
		return nil, err
	}
	if string(v) == "null" {
		return nil, nil
	}
	return []jsontext.Value{v}, nil
}

func decodeValues(part []byte) ([]jsontext.Value, error) {
	var values []jsontext.Value
	dec := jsontext.NewDecoder(bytes.NewReader(part))
	for {
		v, err := dec.ReadValue()
		if err == io.EOF {
			return values, nil
		}
		if err != nil {
			return nil, err
		}
		values = append(values, v.Clone())
	}
}

// manifest is what is decoded of any object.
type manifest struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	} `json:"metadata"`
	Items jsontext.Value `json:"items"`
}

// appendObjects appends a document's object, or the items of a list. d has the place of the document, and list the
// apiVersion and kind of items that have none of their own, as those of a typed list.
func appendObjects(docs []Document, d Document, v jsontext.Value, list manifest) []Document {
	var m manifest
	if v.Kind() != '{' {
		d.Err = errors.New("not an object")
		return append(docs, d)
	}
	if d.Err = json.Unmarshal(v, &m); d.Err != nil {
		return append(docs, d)
	}
	if m.Kind == "" && m.APIVersion == "" {
		m.Kind, m.APIVersion = list.Kind, list.APIVersion
	}
	if m.Kind == "" || m.APIVersion == "" {
		d.Err = errors.New("apiVersion and kind are missing")
		return append(docs, d)
	}
	if items, ok := m.items(); ok {
		inherited := manifest{}
		if kind, typed := strings.CutSuffix(m.Kind, "List"); typed { // "" for a List, which says nothing of its items
			inherited = manifest{APIVersion: m.APIVersion, Kind: kind}
		}
		for i, item := range items {
			before := len(docs)
			docs = appendObjects(docs, d, item, inherited)
			for j := range docs[before:] { // none for an empty list, several for another
				if item := &docs[before+j]; item.Err != nil {
					item.Err = fmt.Errorf("item %d of the %s: %w", i+1, m.Kind, item.Err)
				}
			}
		}
		// kubectl applies the items alone, other clients the object as it is.
		if d.describe(m, v, "items"); d.Review != nil || len(d.NotJudged) > 0 {
			docs = append(docs, d)
		}
		return docs
	}
	if m.Kind == "List" && m.Items != nil && m.Items.Kind() != 'n' {
		d.Err = errors.New("the items of a List are not a list")
		return append(docs, d)
	}
	d.describe(m, v)
	return append(docs, d)
}

// describe fills in what a document says of its object. without are members of it that are no part of it.
func (d *Document) describe(m manifest, v jsontext.Value, without ...string) {
	d.APIVersion, d.Kind, d.Namespace, d.Name = m.APIVersion, m.Kind, m.Metadata.Namespace, m.Metadata.Name
	if d.Name == "" {
		d.Name = m.Metadata.GenerateName
	}
	if d.Review = m.review(v); d.Review == nil {
		found := findShapes(v, without...)
		if text := found.template(); text != nil {
			template := manifest{APIVersion: "v1", Kind: "PodTemplate", Metadata: m.Metadata}
			d.Review = template.review(text)
		}
		if group, _, grouped := strings.Cut(m.APIVersion, "/"); grouped && !isBuiltIn(group) {
			d.NotJudged = found.unjudged
		}
	}
}

// items returns the items of a list. An object whose kind does not end in List is one if its items are objects with a
// kind of their own.
func (m *manifest) items() (items []jsontext.Value, ok bool) {
	plain := m.Kind == "List" && m.APIVersion == "v1"
	if m.Items.Kind() != '[' || json.Unmarshal(m.Items, &items) != nil {
		return nil, plain && (m.Items == nil || m.Items.Kind() == 'n')
	}
	typed := strings.HasSuffix(m.Kind, "List")
	for _, item := range items {
		var i struct {
			Kind string `json:"kind"`
		}
		if item.Kind() != '{' || !typed && (json.Unmarshal(item, &i) != nil || i.Kind == "") {
			return items, plain
		}
	}
	return items, typed || len(items) > 0
}

// review returns a review of the creation of an object; nil for a kind that has no images.
func (m *manifest) review(v jsontext.Value) *admissionv1.AdmissionReview {
	group, version, grouped := strings.Cut(m.APIVersion, "/")
	if !grouped {
		group, version = "", m.APIVersion
	}
	k, ok := kinds[groupKind{group, m.Kind}]
	if !ok {
		return nil
	}
	namespace := m.Metadata.Namespace
	if namespace == "" {
		namespace = "default"
	}
	dryRun := true
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID:       types.UID(rand.Text()),
			Kind:      metav1.GroupVersionKind{Group: group, Version: version, Kind: m.Kind},
			Resource:  metav1.GroupVersionResource{Group: group, Version: version, Resource: k.resource},
			Name:      m.Metadata.Name,
			Namespace: namespace,
			Operation: admissionv1.Create,
			Object:    runtime.RawExtension{Raw: v},
			DryRun:    &dryRun,
		},
	}
}
