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

	// Review is a review of the creation of the object, as a dry run. It is nil for kinds that have no images.
	Review *admissionv1.AdmissionReview
}

// ReadDocuments reads manifests as kubectl does: YAML documents between lines of ---, or consecutive JSON values; a
// List stands for its items. It reads at most 32 MiB. Errors of the content name the document.
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
			return nil, fmt.Errorf("document %d, from line %d: %w", number+1, line, err)
		}
		for _, v := range values {
			number++
			if docs, err = appendObjects(docs, number, line, v); err != nil {
				return nil, fmt.Errorf("document %d, from line %d: %w", number, line, err)
			}
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
	Items []jsontext.Value `json:"items"`
}

// appendObjects appends a document's object, or a List's items.
func appendObjects(docs []Document, number, line int, v jsontext.Value) ([]Document, error) {
	var m manifest
	if v.Kind() != '{' {
		return nil, errors.New("not an object")
	}
	if err := json.Unmarshal(v, &m); err != nil {
		return nil, err
	}
	if m.Kind == "" || m.APIVersion == "" {
		return nil, errors.New("apiVersion and kind are missing")
	}
	if m.Kind == "List" && m.APIVersion == "v1" {
		var err error
		for i, item := range m.Items {
			if docs, err = appendObjects(docs, number, line, item); err != nil {
				return nil, fmt.Errorf("item %d of the List: %w", i+1, err)
			}
		}
		return docs, nil
	}
	d := Document{
		Number: number, Line: line, APIVersion: m.APIVersion, Kind: m.Kind,
		Namespace: m.Metadata.Namespace, Name: m.Metadata.Name, Review: m.review(v),
	}
	if d.Name == "" {
		d.Name = m.Metadata.GenerateName
	}
	return append(docs, d), nil
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
