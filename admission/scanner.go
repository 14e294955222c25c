package admission

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	// maxDepth bounds how deep arrays and objects may lie within each other; the API server's decoders have the same bound.
	maxDepth = 10_000

	// maxPath bounds the path in a fault, and each name of it, in bytes.
	maxPath = 200
)

// scanner reads a JSON text (RFC 8259) from front to back, once, and hands out what it is asked for. The rest is checked
// all the same: there may be no duplicate names, compared as they are without escapes, and no invalid UTF-8, so that
// nobody understands another object than the API server does. null stands for the zero value of everything. What is
// asked for but of another type is passed over, and noted as a fault.
//
// Objects and arrays are read in loops whose bodies read one value, exactly once, and do not break:
//
//	for ok := s.object(); ok; ok = s.next() {
//		switch string(s.name) {
type scanner struct {
	text  []byte
	at    int    // what is before it has been read; the end of text after a fatal fault
	name  []byte // of the member whose value is next, until that is read
	open  []frame
	names [][]byte // of the members so far of all objects that are open, the outermost first
	spare []byte   // for strings with escapes
	fault *fault   // the first one; a fatal one takes its place
}

// frame is an object or an array that is open.
type frame struct {
	bracket byte // that closes it
	outer   int  // how many names there were before its own
	index   int  // of an array: of the element that is next
}

// scanners keeps scanners for later texts.
var scanners = sync.Pool{New: func() any { return new(scanner) }}

// newScanner returns a scanner of a text. It may be given back when what it has read is not needed any more; strings stay.
func newScanner(text []byte) *scanner {
	s := scanners.Get().(*scanner)
	*s = scanner{text: text, open: s.open[:0], names: s.names[:0], spare: s.spare[:0]}
	return s
}

// free gives the scanner back, unless it has grown beyond what nearly all need.
func (s *scanner) free() {
	const many = 1024
	if cap(s.open) > many || cap(s.names) > many || cap(s.spare) > maxKept {
		return
	}
	clear(s.names[:cap(s.names)]) // the text goes its own ways
	*s = scanner{open: s.open, names: s.names, spare: s.spare}
	scanners.Put(s)
}

// fault is what is wrong with a text.
type fault struct {
	text  string
	path  string // as in request.object.spec, "" at the top
	fatal bool   // it is no JSON; otherwise there was a value of another type than was asked for
}

func (f *fault) Error() string {
	if f.path == "" {
		return f.text
	}
	return f.text + ", at " + f.path
}

// fail notes that the text is no JSON, and ends the reading.
func (s *scanner) fail(format string, args ...any) {
	if s.failed() {
		return
	}
	s.fault = &fault{text: fmt.Sprintf(format, args...), path: s.path(), fatal: true}
	s.at, s.open, s.names = len(s.text), s.open[:0], s.names[:0]
}

// failed tells whether the text is no JSON.
func (s *scanner) failed() bool { return s.fault != nil && s.fault.fatal }

// path says where the reading is.
func (s *scanner) path() string {
	var b strings.Builder
	for i, f := range s.open {
		if b.Len() > maxPath {
			b.WriteString("...")
			break
		}
		if f.bracket == ']' {
			b.WriteString("[" + strconv.Itoa(f.index) + "]")
			continue
		}
		end := len(s.names)
		if i+1 < len(s.open) {
			end = s.open[i+1].outer
		}
		if end == f.outer {
			continue // it has no name yet
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		name := s.names[end-1]
		b.Write(name[:min(len(name), maxPath)])
	}
	return b.String()
}

// unexpected fails at the next character.
func (s *scanner) unexpected(wanted string) {
	if s.peek(); s.at >= len(s.text) {
		s.fail("it ends early, before %s", wanted)
		return
	}
	r, _ := utf8.DecodeRune(s.text[s.at:])
	s.fail("%q at byte %d, instead of %s", r, s.at, wanted)
}

// mismatch passes over a value that is not what was asked for, unless it is null.
func (s *scanner) mismatch(wanted string) {
	found := "a number"
	switch s.peek() {
	case 'n':
		s.literal("null")
		return
	case '{':
		found = "an object"
	case '[':
		found = "an array"
	case '"':
		found = "a string"
	case 't', 'f':
		found = "a boolean"
	}
	if s.fault == nil {
		s.fault = &fault{text: found + " instead of " + wanted, path: s.path()}
	}
	s.skip()
}

// end checks that nothing follows.
func (s *scanner) end() {
	if s.peek(); s.at < len(s.text) {
		s.unexpected("the end")
	}
}

// peek returns the first character of what comes next, 0 at the end.
func (s *scanner) peek() byte {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; c {
		case ' ', '\n', '\r', '\t':
			s.at++
		default:
			return c
		}
	}
	return 0
}

// object enters an object up to the value of its first member. It is false if there is none.
func (s *scanner) object() bool {
	if s.peek() != '{' {
		s.mismatch("an object")
		return false
	}
	return s.enter('}') && s.member()
}

// array enters an array up to its first element. It is false if there is none.
func (s *scanner) array() bool {
	if s.peek() != '[' {
		s.mismatch("an array")
		return false
	}
	return s.enter(']')
}

// enter enters an object or an array, and leaves it at once if it is empty.
func (s *scanner) enter(bracket byte) bool {
	if len(s.open) == maxDepth {
		s.fail("it exceeds the depth of %d", maxDepth)
		return false
	}
	s.at++
	if s.peek() == bracket {
		s.at++
		return false
	}
	s.open = append(s.open, frame{bracket: bracket, outer: len(s.names)})
	return true
}

// member reads the name of a member, up to its value.
func (s *scanner) member() bool {
	if s.peek() != '"' {
		s.unexpected("a name")
		return false
	}
	start := s.at
	s.name = s.quoted()
	if len(s.name) < s.at-start-2 { // there were escapes
		s.name = bytes.Clone(s.name)
	}
	s.names = append(s.names, s.name)
	if s.peek() != ':' {
		s.unexpected("a colon")
		return false
	}
	s.at++
	return true
}

// next goes on to the next value of the innermost object or array, and leaves it if there is none.
func (s *scanner) next() bool {
	c := s.peek()
	if s.failed() {
		return false
	}
	f := &s.open[len(s.open)-1]
	switch {
	case c == ',' && f.bracket == ']':
		s.at++
		f.index++
		return true
	case c == ',':
		s.at++
		return s.member()
	case c != f.bracket:
		s.unexpected("a comma or " + strconv.QuoteRune(rune(f.bracket)))
		return false
	}
	s.at++
	name, twice := duplicate(s.names[f.outer:])
	s.names = s.names[:f.outer]
	s.open = s.open[:len(s.open)-1]
	if twice {
		s.fail("duplicate name %q", name[:min(len(name), maxPath)])
	}
	return false
}

// find enters an object up to the value of one of its members, after which rest has to be called. It is false if there is
// none, and then the object has been passed over.
func (s *scanner) find(name string) bool {
	for ok := s.object(); ok; ok = s.next() {
		if string(s.name) == name {
			return true
		}
		s.skip()
	}
	return false
}

// rest passes over what is left of the innermost object or array.
func (s *scanner) rest() {
	for s.next() {
		s.skip()
	}
}

// duplicate finds a name that is there twice. It may change their order.
func duplicate(names [][]byte) ([]byte, bool) {
	const few = 16
	if len(names) <= few {
		for i, a := range names {
			for _, b := range names[:i] {
				if string(a) == string(b) {
					return a, true
				}
			}
		}
		return nil, false
	}
	slices.SortFunc(names, bytes.Compare)
	for i, a := range names[1:] {
		if string(a) == string(names[i]) {
			return a, true
		}
	}
	return nil, false
}

// list reads an array with what reads an element.
func list[T any](s *scanner, read func(*T, *scanner)) []T {
	var l []T
	for ok := s.array(); ok; ok = s.next() {
		if len(l) == cap(l) { // append alone would allocate five times of a long list in all
			l = slices.Grow(l, max(len(l), 4))
		}
		var v T
		l = append(l, v)
		read(&l[len(l)-1], s)
	}
	return l
}

// null reads null, if it is next.
func (s *scanner) null() bool {
	if s.peek() != 'n' {
		return false
	}
	s.literal("null")
	return true
}

func (s *scanner) literal(word string) {
	if !bytes.HasPrefix(s.text[s.at:], []byte(word)) {
		s.unexpected("a value")
		return
	}
	s.at += len(word)
}

// string reads a string.
func (s *scanner) string() string {
	if s.peek() != '"' {
		s.mismatch("a string")
		return ""
	}
	return string(s.quoted())
}

// bool reads a boolean.
func (s *scanner) bool() bool {
	switch s.peek() {
	case 't':
		s.literal("true")
		return true
	case 'f':
		s.literal("false")
	default:
		s.mismatch("a boolean")
	}
	return false
}

// plain counts the characters at the front of a text that stand for themselves in a string: ASCII without quotes,
// backslashes and control characters. It looks at eight at a time.
func plain(text []byte) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	n := 0
	for ; n+8 <= len(text); n += 8 {
		x := binary.LittleEndian.Uint64(text[n:])
		quote, backslash := x^('"'*ones), x^('\\'*ones)
		// A byte's high bit is set if it is beyond ASCII, below a space, or was made zero; above the first such byte, others may be too.
		if m := (x | (x - ' '*ones) | (quote - ones) | (backslash - ones)) & highs; m != 0 {
			return n + bits.TrailingZeros64(m)/8
		}
	}
	for n < len(text) && ' ' <= text[n] && text[n] < utf8.RuneSelf && text[n] != '"' && text[n] != '\\' {
		n++
	}
	return n
}

// quoted reads a string, of which the quote has been seen. What it returns is part of the text, or holds until the next
// string is read.
func (s *scanner) quoted() []byte {
	start := s.at + 1
	i := start + plain(s.text[start:])
	if i < len(s.text) && s.text[i] == '"' {
		s.at = i + 1
		return s.text[start:i]
	}
	for i < len(s.text) && s.text[i] != '"' {
		if s.text[i] == '\\' {
			i++
		}
		i++
	}
	if i >= len(s.text) {
		s.fail("it ends early, in the string that starts at byte %d", s.at)
		return nil
	}
	var err error
	if s.spare, err = jsontext.AppendUnquote(s.spare[:0], s.text[s.at:i+1]); err != nil {
		s.fail("the string at byte %d: %s", s.at, err)
		return nil
	}
	s.at = i + 1
	if len(s.spare) == i-start { // there were no escapes
		return s.text[start:i]
	}
	return s.spare
}

// skip passes over a value.
func (s *scanner) skip() {
	outer := len(s.open)
	for {
		within := false
		switch s.peek() {
		case '{':
			within = s.object()
		case '[':
			within = s.array()
		case '"':
			s.quoted()
		case 't':
			s.literal("true")
		case 'f':
			s.literal("false")
		case 'n':
			s.literal("null")
		default:
			s.number()
		}
		for !within {
			if len(s.open) <= outer {
				return
			}
			within = s.next()
		}
	}
}

// number passes over a number.
func (s *scanner) number() {
	if s.take('-'); !s.take('0') {
		s.digits()
	}
	if s.take('.') {
		s.digits()
	}
	if s.take('e') || s.take('E') {
		_ = s.take('-') || s.take('+')
		s.digits()
	}
}

// take passes over a character, if it is next.
func (s *scanner) take(c byte) bool {
	if s.at < len(s.text) && s.text[s.at] == c {
		s.at++
		return true
	}
	return false
}

// digits passes over at least one digit.
func (s *scanner) digits() {
	start := s.at
	for s.at < len(s.text) && '0' <= s.text[s.at] && s.text[s.at] <= '9' {
		s.at++
	}
	if s.at == start {
		s.unexpected("a value")
	}
}
