package arrows

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What comments say of locks, in the words that TestLocks reads.
const (
	guards = "guards the fields below" // of the field mu: those below it, up to an empty line
	isHeld = "mu is held"              // of a method: its callers hold mu
	holds  = "with mu held"            // of a method: it calls the function that it is given so
)

// guarded is a struct whose mu says what it guards.
type guarded struct {
	fields  map[string]bool
	methods map[string]*ast.FuncDecl
}

// TestLocks finds a struct that has a lock and does not say what for, and methods that use a field without its lock: neither
// do they lock mu, nor do they say that it is held. It does
// not see an unlock that comes too early, or another path to the field; the race detector is for those.
func TestLocks(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, folder := range []string{"cmd", "envelope", "evidence", "hsm", "internal", "kmsplugin"} {
		err := filepath.WalkDir(filepath.Join("../..", folder), func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return err
			}
			found, silent, err := lockedTypes(path)
			for _, where := range silent {
				t.Errorf("%s: say that the lock %s, or while what it is held", where, guards)
			}
			for name, g := range found {
				seen++
				g.check(t, path, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 10 {
		t.Errorf("%d structs say what their lock guards; there were more", seen)
	}
}

// lockedTypes are the structs of a folder that say what their mu guards, and the places of locks that say nothing that can be checked.
func lockedTypes(folder string) (found map[string]*guarded, silent []string, err error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, nil, err
	}
	found = map[string]*guarded{}
	set := token.NewFileSet()
	var all []ast.Decl
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, file.Decls...)
	}
	for _, d := range all {
		ast.Inspect(d, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok {
					silent = append(silent, silentLocks(set, s)...)
					if fields := below(set, s); fields != nil {
						found[spec.Name.Name] = &guarded{fields, map[string]*ast.FuncDecl{}}
					}
				}
			}
			return true
		})
	}
	for _, d := range all {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
			if g := found[receiver(f.Recv.List[0].Type)]; g != nil {
				g.methods[f.Name.Name] = f
			}
		}
	}
	return found, silent, nil
}

// silentLocks are the places of the struct's locks without a comment, or with another one of what they guard than TestLocks reads.
func silentLocks(set *token.FileSet, s *ast.StructType) (silent []string) {
	for _, f := range s.Fields.List {
		of, isSelector := f.Type.(*ast.SelectorExpr)
		if !isSelector || of.Sel.Name != "Mutex" && of.Sel.Name != "RWMutex" {
			continue
		}
		if text := f.Comment.Text() + f.Doc.Text(); text == "" || strings.Contains(text, "guards") && !strings.Contains(text, guards) {
			silent = append(silent, set.Position(f.Pos()).String())
		}
	}
	return silent
}

// below are the fields that the struct's mu guards; nil: it does not say.
func below(set *token.FileSet, s *ast.StructType) map[string]bool {
	var fields map[string]bool
	last := 0
	for _, f := range s.Fields.List {
		first := set.Position(f.Pos()).Line
		if f.Doc != nil {
			first = set.Position(f.Doc.Pos()).Line
		}
		if fields != nil && first > last+1 {
			break
		}
		last = set.Position(f.End()).Line
		for _, name := range f.Names {
			if fields != nil {
				fields[name.Name] = true
			} else if name.Name == "mu" && strings.Contains(f.Comment.Text()+f.Doc.Text(), guards) {
				fields = map[string]bool{}
			}
		}
	}
	return fields
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

func (g *guarded) check(t *testing.T, folder, typeName string) {
	t.Helper()
	says := func(method, words string) bool {
		f := g.methods[method]
		return f != nil && strings.Contains(strings.Join(strings.Fields(f.Doc.Text()), " "), words)
	}
	for name, f := range g.methods {
		if len(f.Recv.List[0].Names) == 0 || says(name, isHeld) {
			continue
		}
		self, locks, uses := f.Recv.List[0].Names[0].Name, false, ""
		ast.Inspect(f.Body, func(n ast.Node) bool {
			selected, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch on := selected.X.(type) {
			case *ast.SelectorExpr: // self.mu.Lock
				of, ok := on.X.(*ast.Ident)
				locks = locks || ok && of.Name == self && on.Sel.Name == "mu" && strings.Contains(strings.ToLower(selected.Sel.Name), "lock")
			case *ast.Ident:
				if on.Name == self && (g.fields[selected.Sel.Name] || says(selected.Sel.Name, isHeld)) {
					uses = selected.Sel.Name
				}
				locks = locks || on.Name == self && says(selected.Sel.Name, holds)
			}
			return true
		})
		if uses != "" && !locks {
			t.Errorf("%s: %s.%s uses %s: lock mu, or say that %s", folder, typeName, name, uses, isHeld)
		}
	}
}
