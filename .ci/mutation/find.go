package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// A mutant is a small change of the code, by one operator at one place.
type mutant struct {
	id       int // from 1 on; 0 is the code as it is
	kind     string
	file     string // the name without the directory
	line     int
	function string // (*T).name, name, or "-" outside of functions
	source   string // the changed expression or statement, in one line
	nth      int    // from 1 on, among equal sources in a function
	dropped  bool   // does not compile
}

// key identifies a mutant in the list of known survivors, whatever its line is.
func (m *mutant) key(pkg string) string {
	k := fmt.Sprintf("%s %s %s %s %s", pkg, m.file, m.function, m.kind, m.source)
	if m.nth > 1 {
		k += fmt.Sprintf(" #%d", m.nth)
	}
	return k
}

// A source is a file of the package under test, with the places where mutants change it.
type source struct {
	path   string
	text   []byte
	places []*place // by start; of two with the same start, the longer one is first
}

// A place is a range of a file that is replaced by the code that chooses among mutants at run time.
type place struct {
	start, end int
	mutants    []*mutant
	// build returns the replacement; alive are the mutants that compile, at least one.
	build func(s *source, alive []*mutant) string
}

// A target is the package under test.
type target struct {
	path, dir, name string
	sources         []*source
	mutants         []*mutant // the mutant with ID n is at n-1
	constants       int       // candidates in constant declarations and array lengths: no switch can choose there
}

// find lists the mutants of a package. It returns an error if the package does not compile.
func find(module, pkg string) (*target, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Name,GoFiles,Export,DepOnly", pkg)
	cmd.Dir = module
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", pkg, err)
	}
	t := &target{}
	var names []string
	exports := map[string]string{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir, Name, Export string
			GoFiles                       []string
			DepOnly                       bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		exports[p.ImportPath] = p.Export
		if !p.DepOnly {
			t.path, t.dir, t.name, names = p.ImportPath, p.Dir, p.Name, p.GoFiles
		}
	}
	return t, t.parse(names, exports)
}

// parse reads and checks the files of the package and collects their mutants.
func (t *target) parse(names []string, exports map[string]string) error {
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		path := filepath.Join(t.dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, f)
		t.sources = append(t.sources, &source{path: path, text: text})
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	if _, err := conf.Check(t.path, fset, files, info); err != nil {
		return err
	}
	for i, f := range files {
		v := &visitor{target: t, source: t.sources[i], fset: fset, info: info, seen: map[string]int{},
			imports: map[string]bool{}}
		for _, spec := range f.Imports {
			if spec.Name == nil {
				v.imports[strings.Trim(spec.Path.Value, `"`)] = true
			}
		}
		ast.PreorderStack(f, nil, func(n ast.Node, stack []ast.Node) bool {
			v.visit(n, stack)
			return true
		})
		slices.SortStableFunc(v.source.places, func(a, b *place) int {
			if a.start != b.start {
				return a.start - b.start
			}
			return b.end - a.end
		})
	}
	return nil
}

// A visitor collects the mutants of a file.
type visitor struct {
	target  *target
	source  *source
	fset    *token.FileSet
	info    *types.Info
	seen    map[string]int  // sources in functions, for mutant.nth
	imports map[string]bool // paths of packages that have their own names in this file
}

// The operators, with the names that gremlins and other tools use.
var (
	boundary = map[token.Token]string{token.LSS: "<=", token.LEQ: "<", token.GTR: ">=", token.GEQ: ">"}
	negation = map[token.Token]string{token.EQL: "!=", token.NEQ: "==", token.LSS: ">=", token.LEQ: ">",
		token.GTR: "<=", token.GEQ: "<"}
	logical    = map[token.Token]string{token.LAND: "||", token.LOR: "&&"}
	arithmetic = map[token.Token]string{token.ADD: "add", token.SUB: "subtract", token.MUL: "multiply",
		token.QUO: "divide", token.REM: "remainder"}
	assignment = map[token.Token]string{token.ADD_ASSIGN: "-=", token.SUB_ASSIGN: "+=", token.MUL_ASSIGN: "/=",
		token.QUO_ASSIGN: "*=", token.REM_ASSIGN: "*="}
	control = map[token.Token]string{token.BREAK: "continue", token.CONTINUE: "break"}
	step    = map[token.Token]string{token.INC: "--", token.DEC: "++"}
)

func (v *visitor) visit(n ast.Node, stack []ast.Node) {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		v.binary(n, stack)
	case *ast.UnaryExpr:
		if n.Op == token.SUB && v.number(n) && !v.constant(stack) {
			v.add(n, stack, []string{"INVERT_NEGATIVES"}, v.call("negate", n, n.X))
		}
	case *ast.IncDecStmt:
		v.statement(n, stack, "INCREMENT_DECREMENT", v.text(n.X)+step[n.Tok])
	case *ast.AssignStmt:
		if op, ok := assignment[n.Tok]; ok && v.number(n.Lhs[0]) {
			v.statement(n, stack, "INVERT_ASSIGNMENTS", v.text(n.Lhs[0])+" "+op+" "+v.text(n.Rhs[0]))
		}
	case *ast.BranchStmt:
		if word, ok := control[n.Tok]; ok {
			if n.Label != nil {
				word += " " + n.Label.Name
			}
			v.statement(n, stack, "INVERT_LOOPCTRL", word)
		}
	}
}

func (v *visitor) binary(n *ast.BinaryExpr, stack []ast.Node) {
	if op, ok := arithmetic[n.Op]; ok {
		if v.number(n) && !v.constant(stack) {
			v.add(n, stack, []string{"ARITHMETIC_BASE"}, v.call(op, n, n.X, n.Y))
		}
		return
	}
	if v.info.Types[n].Value != nil { // a comparison of constants
		return
	}
	var kinds, operators []string
	for _, o := range []struct {
		kind string
		of   map[token.Token]string
	}{{"CONDITIONALS_BOUNDARY", boundary}, {"CONDITIONALS_NEGATION", negation}, {"INVERT_LOGICAL", logical}} {
		if op, ok := o.of[n.Op]; ok {
			kinds = append(kinds, o.kind)
			operators = append(operators, op)
		}
	}
	if len(kinds) == 0 {
		return
	}
	x, y := v.text(n.X), v.text(n.Y)
	xs, xe, ys, ye := v.offset(n.X.Pos()), v.offset(n.X.End()), v.offset(n.Y.Pos()), v.offset(n.Y.End())
	first := v.add(n, stack, kinds, nil)
	// Only one mutant is active at a time, so that the changed copies are made of the operands as they are.
	v.source.places[len(v.source.places)-1].build = func(s *source, alive []*mutant) string {
		var b strings.Builder
		rest := ""
		b.WriteString("(")
		for _, m := range alive {
			fmt.Fprintf(&b, "mutantIs_(%d) && (%s %s %s) || ", m.id, x, operators[m.id-first], y)
			rest += fmt.Sprintf("!mutantIs_(%d) && ", m.id)
		}
		fmt.Fprintf(&b, "%s(%s %s %s))", rest, s.render(xs, xe), n.Op, s.render(ys, ye))
		return b.String()
	}
}

// call returns a build function that replaces an expression by a call of a generic function. The operators that it is
// used for evaluate all their operands, as a call does.
func (v *visitor) call(name string, n ast.Expr, operands ...ast.Expr) func(*source, []*mutant) string {
	instance := ""
	if v.info.Types[n].Value != nil { // untyped constants would become int, whatever the context is
		if text, ok := v.typeName(v.info.Types[n].Type); ok {
			instance = "[" + text + "]"
		}
	}
	return func(s *source, alive []*mutant) string {
		text := fmt.Sprintf("mutant_%s%s(%d", name, instance, alive[0].id)
		for _, x := range operands {
			text += ", " + s.render(v.offset(x.Pos()), v.offset(x.End()))
		}
		return text + ")"
	}
}

// statement adds a mutant that replaces a statement. Where Go wants a simple statement, the choice is made in a
// function.
func (v *visitor) statement(n ast.Stmt, stack []ast.Node, kind, changed string) {
	before, after := "", ""
	switch stack[len(stack)-1].(type) {
	case *ast.BlockStmt, *ast.CaseClause, *ast.CommClause, *ast.LabeledStmt:
	default:
		before, after = "func() { ", " }()"
	}
	start, end := v.offset(n.Pos()), v.offset(n.End())
	v.add(n, stack, []string{kind}, nil)
	p := v.source.places[len(v.source.places)-1]
	p.build = func(s *source, alive []*mutant) string {
		// The statement itself may contain mutants, but not this one.
		original := s.renderWithout(p, start, end)
		return fmt.Sprintf("%sif mutantIs_(%d) { %s } else { %s }%s", before, alive[0].id, changed, original, after)
	}
}

// add adds a place with one mutant of each kind, and returns the ID of the first.
func (v *visitor) add(n ast.Node, stack []ast.Node, kinds []string, build func(*source, []*mutant) string) int {
	p := &place{start: v.offset(n.Pos()), end: v.offset(n.End()), build: build}
	function := inFunction(stack)
	text := strings.Join(strings.Fields(v.text(n)), " ")
	if r := []rune(text); len(r) > 70 {
		text = string(r[:70]) + "…"
	}
	first := len(v.target.mutants) + 1
	for _, kind := range kinds {
		key := function + " " + kind + " " + text
		v.seen[key]++
		m := &mutant{
			id: len(v.target.mutants) + 1, kind: kind, file: filepath.Base(v.source.path),
			line: v.fset.Position(n.Pos()).Line, function: function, source: text, nth: v.seen[key],
		}
		p.mutants = append(p.mutants, m)
		v.target.mutants = append(v.target.mutants, m)
	}
	v.source.places = append(v.source.places, p)
	return first
}

// number reports whether an expression is a number of a type that the generic functions take.
func (v *visitor) number(n ast.Expr) bool {
	basic, ok := v.info.Types[n].Type.Underlying().(*types.Basic)
	return ok && basic.Info()&(types.IsInteger|types.IsFloat) != 0
}

// constant reports whether Go wants a constant here. It counts such candidates.
func (v *visitor) constant(stack []ast.Node) bool {
	for i, n := range stack {
		switch n := n.(type) {
		case *ast.GenDecl:
			if n.Tok == token.CONST {
				v.target.constants++
				return true
			}
		case *ast.ArrayType:
			if i+1 < len(stack) && stack[i+1] == n.Len || i+1 == len(stack) {
				v.target.constants++
				return true
			}
		}
	}
	return false
}

// typeName returns the name of a type in this file. It reports false if the type has no name here.
func (v *visitor) typeName(t types.Type) (string, bool) {
	ok := true
	text := types.TypeString(t, func(p *types.Package) string {
		if p.Path() == v.target.path {
			return ""
		}
		ok = ok && v.imports[p.Path()]
		return p.Name()
	})
	return text, ok && !strings.HasPrefix(text, "untyped ")
}

func (v *visitor) text(n ast.Node) string {
	return string(v.source.text[v.offset(n.Pos()):v.offset(n.End())])
}

func (v *visitor) offset(p token.Pos) int { return v.fset.Position(p).Offset }

// inFunction returns the name of the function declaration around a node.
func inFunction(stack []ast.Node) string {
	for _, n := range stack {
		f, ok := n.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if f.Recv == nil || len(f.Recv.List) == 0 {
			return f.Name.Name
		}
		switch r := ast.Unparen(f.Recv.List[0].Type).(type) {
		case *ast.StarExpr:
			return "(*" + typeOf(r.X) + ")." + f.Name.Name
		default:
			return typeOf(r) + "." + f.Name.Name
		}
	}
	return "-"
}

// typeOf returns the name of a receiver's type without type parameters.
func typeOf(e ast.Expr) string {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		return e.Name
	case *ast.IndexExpr:
		return typeOf(e.X)
	case *ast.IndexListExpr:
		return typeOf(e.X)
	}
	return "?"
}
