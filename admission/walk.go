package admission

import (
	"bytes"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// A review is decoded member by member: what the verdict needs is read, and everything else is skipped. Decoding into
// structs takes twice as long, because the library skips unknown members token by token, and compares their names
// without regard to case as well. Every function here reads exactly one value, and checks its syntax, its names and its
// UTF-8 whether it is needed or not. null stands for the empty value of any type, as in Go's and Kubernetes' decoders.

// mismatch is the error for a value that has another type than the one that is decoded.
type mismatch struct {
	pointer jsontext.Pointer
	found   jsontext.Kind
	want    string
}

func (e *mismatch) Error() string {
	found := "a value of the wrong type"
	switch e.found {
	case 't', 'f':
		found = "a boolean"
	case '"':
		found = "a string"
	case '0':
		found = "a number"
	case '{':
		found = "an object"
	case '[':
		found = "an array"
	}
	return found + " instead of " + e.want
}

// skip reads a value of any type. ReadValue takes half the time of SkipValue, which reads token by token.
func skip(dec *jsontext.Decoder) error {
	_, err := dec.ReadValue()
	return err
}

// skipOther is skip for a value that should have been of another type: null or an error.
func skipOther(dec *jsontext.Decoder, want string) error {
	v, err := dec.ReadValue()
	if err != nil || v.Kind() == 'n' {
		return err
	}
	return &mismatch{dec.StackPointer(), v.Kind(), want}
}

// members reads an object, and calls member for each member, which must read the value. name is only valid until then.
func members(dec *jsontext.Decoder, member func(name []byte) error) error {
	if dec.PeekKind() != '{' {
		return skipOther(dec, "an object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != '}' { // where the input is broken ReadValue fails
		name, err := dec.ReadValue()
		if err != nil {
			return err
		}
		if err := member(unquote(name)); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// elements reads an array, and calls element for each element, which must read it.
func elements(dec *jsontext.Decoder, element func() error) error {
	if dec.PeekKind() != '[' {
		return skipOther(dec, "an array")
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' { // where the input is broken the element's read fails
		if err := element(); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// text reads a string.
func text(dec *jsontext.Decoder) (string, error) {
	b, err := textBytes(dec)
	return string(b), err
}

// textBytes is text without a copy. The result is only valid until the next read.
func textBytes(dec *jsontext.Decoder) ([]byte, error) {
	if dec.PeekKind() != '"' {
		return nil, skipOther(dec, "a string")
	}
	v, err := dec.ReadValue()
	if err != nil {
		return nil, err
	}
	return unquote(v), nil
}

// boolean reads a boolean.
func boolean(dec *jsontext.Decoder) (bool, error) {
	if k := dec.PeekKind(); k != 't' && k != 'f' {
		return false, skipOther(dec, "a boolean")
	}
	v, err := dec.ReadValue()
	return err == nil && v.Kind() == 't', err
}

// unquote returns the string that a JSON string means. It shares the memory of v unless v has escapes.
func unquote(v jsontext.Value) []byte {
	if bytes.IndexByte(v, '\\') < 0 && len(v) >= 2 {
		return v[1 : len(v)-1]
	}
	b, _ := jsontext.AppendUnquote(nil, v) // fails for what the decoder has refused before
	return b
}

// span is where the text of a value is in the input.
type span struct{ start, end int64 }

// read reads a value of any type, to be decoded later.
func (s *span) read(dec *jsontext.Decoder) error {
	v, err := dec.ReadValue()
	*s = span{dec.InputOffset() - int64(len(v)), dec.InputOffset()}
	return err
}

// of returns the text of the value in the input.
func (s span) of(input []byte) []byte { return input[s.start:s.end] }

// decoder is a decoder of an input in memory.
type decoder struct {
	jsontext.Decoder
	input bytes.Buffer // the library reads a bytes.Buffer without copying it
}

// decoders are those that can be used again. One grows with what it has decoded, to some kilobytes.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// decode calls read with a decoder of the input. read must not keep it.
func decode(input []byte, read func(*jsontext.Decoder) error, options ...jsontext.Options) error {
	d := decoders.Get().(*decoder)
	d.input = *bytes.NewBuffer(input)
	d.Reset(&d.input, options...)
	err := read(&d.Decoder)
	if len(input) <= maxKept { // after a large one it may have tables of millions of names
		d.input = bytes.Buffer{}
		d.Reset(&d.input) // lets go of the input
		decoders.Put(d)
	}
	return err
}
