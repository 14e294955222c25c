package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// render returns a range of the file with the choices of mutants in it.
func (s *source) render(start, end int) string { return s.renderWithout(nil, start, end) }

// renderWithout is render without one place, whose range is the whole range.
func (s *source) renderWithout(without *place, start, end int) string {
	var b strings.Builder
	at := start
	for _, p := range s.places {
		if p.start < at || p.end > end || p == without {
			continue
		}
		var alive []*mutant
		for _, m := range p.mutants {
			if !m.dropped {
				alive = append(alive, m)
			}
		}
		if len(alive) == 0 {
			continue
		}
		b.Write(s.text[at:p.start])
		b.WriteString(p.build(s, alive))
		at = p.end
	}
	b.Write(s.text[at:end])
	return b.String()
}

// hook is the file that is added to the package: it says which mutant is active, and records those that are reached.
const hook = `package %s

import (
	"os"
	"strconv"
	"sync/atomic"
)

var (
	mutantActive_, mutantRecord_ = mutantStart_()
	mutantReached_               [%d]atomic.Bool
)

func mutantStart_() (int, string) {
	n, _ := strconv.Atoi(os.Getenv("MUTANT"))
	return n, os.Getenv("MUTANT_RECORD")
}

func mutantIs_(n int) bool {
	if mutantRecord_ != "" {
		mutantReach_(n)
	}
	return mutantActive_ == n
}

// mutantReach_ writes at once: the process may be killed at any time.
func mutantReach_(n int) {
	if mutantReached_[n].Swap(true) {
		return
	}
	f, err := os.OpenFile(mutantRecord_, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	f.WriteString(strconv.Itoa(n) + "\n")
	f.Close()
}

type mutantInteger_ interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr
}

type mutantNumber_ interface{ mutantInteger_ | ~float32 | ~float64 }

func mutant_add[T mutantNumber_](n int, a, b T) T {
	if mutantIs_(n) {
		return a - b
	}
	return a + b
}

func mutant_subtract[T mutantNumber_](n int, a, b T) T {
	if mutantIs_(n) {
		return a + b
	}
	return a - b
}

func mutant_multiply[T mutantNumber_](n int, a, b T) T {
	if mutantIs_(n) {
		return a / b
	}
	return a * b
}

func mutant_divide[T mutantNumber_](n int, a, b T) T {
	if mutantIs_(n) {
		return a * b
	}
	return a / b
}

func mutant_remainder[T mutantInteger_](n int, a, b T) T {
	if mutantIs_(n) {
		return a * b
	}
	return a %% b
}

func mutant_negate[T mutantNumber_](n int, a T) T {
	if mutantIs_(n) {
		return a
	}
	return -a
}
`

// compile builds the test binaries of packages with all mutants of the target in them. Mutants that the compiler
// refuses are dropped.
func (t *target) compile(module, work string, packages []string) ([]string, error) {
	for {
		overlay := map[string]map[string]string{"Replace": {}}
		write := func(path, text string) error {
			copied := filepath.Join(work, filepath.Base(path))
			overlay["Replace"][path] = copied
			return os.WriteFile(copied, []byte(text), 0o600)
		}
		texts := map[string]string{}
		for _, s := range t.sources {
			text := s.render(0, len(s.text))
			texts[filepath.Base(s.path)] = text
			if err := write(s.path, text); err != nil {
				return nil, err
			}
		}
		if err := write(filepath.Join(t.dir, "zz_mutants.go"),
			fmt.Sprintf(hook, t.name, len(t.mutants)+1)); err != nil {
			return nil, err
		}
		data, err := json.Marshal(overlay)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(work, "overlay.json")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return nil, err
		}
		var binaries []string
		refused := ""
		for i, pkg := range packages {
			binary := filepath.Join(work, fmt.Sprintf("test%d", i))
			cmd := exec.Command("go", "test", "-c", "-vet=off", "-gcflags="+t.path+"=-e", "-overlay", file,
				"-o", binary,
				pkg)
			cmd.Dir = module
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				refused = out.String()
				break
			}
			binaries = append(binaries, binary)
		}
		if refused == "" {
			return binaries, nil
		}
		if !t.drop(texts, refused) {
			return nil, fmt.Errorf("go test -c: %s", refused)
		}
	}
}

var (
	compileError = regexp.MustCompile(`(?m)([^/\s:]+\.go):(\d+):(\d+): `)
	choice       = regexp.MustCompile(`mutant(?:Is_|_[a-z]+(?:\[[^(]*\])?)\((\d+)`)
)

// drop drops the mutants that the compiler's messages are about, and reports whether there was one. A message is about
// the last choice that begins before its position.
func (t *target) drop(texts map[string]string, messages string) bool {
	dropped := false
	for _, match := range compileError.FindAllStringSubmatch(messages, -1) {
		text := texts[match[1]]
		line, _ := strconv.Atoi(match[2])
		column, _ := strconv.Atoi(match[3])
		position := column - 1
		for range line - 1 {
			position += strings.IndexByte(text[position-column+1:], '\n') + 1
		}
		last := 0
		for _, c := range choice.FindAllStringSubmatchIndex(text, -1) {
			if c[0] > position+1 { // the position may be that of the parenthesis before the choice
				break
			}
			last, _ = strconv.Atoi(text[c[2]:c[3]])
		}
		if last > 0 && !t.mutants[last-1].dropped {
			t.mutants[last-1].dropped = true
			dropped = true
		}
	}
	return dropped
}
