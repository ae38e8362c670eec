package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// unknownPart stands in a text for a value that only a run of the program knows.
const unknownPart = "…"

// source is one Go file of the program, without tests.
type source struct {
	Path string // from the root of the repository
	Set  *token.FileSet
	File *ast.File
}

// readSources parses the program: no tests, and nothing below test and hsm/hsmtest, which is a suite.
func readSources(root string) ([]source, error) {
	var all []source
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (slices.Contains([]string{".git", "testdata", "hsmtest", "bin", "dist"}, name) || filepath.Clean(path) == filepath.Join(root, "test")):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		all = append(all, source{filepath.ToSlash(relative), set, file})
		return err
	})
	return all, err
}

// constants are the texts of the program's constants and of its sentinels (errors.New), by package and name.
type constants map[string]string

func constantsOf(sources []source) constants {
	known := constants{}
	for range 2 { // a constant may be made of others
		for _, s := range sources {
			for _, decl := range s.File.Decls {
				gen, ok := decl.(*ast.GenDecl)
				if !ok || gen.Tok == token.IMPORT || gen.Tok == token.TYPE {
					continue
				}
				for _, spec := range gen.Specs {
					values, ok := spec.(*ast.ValueSpec)
					if !ok {
						continue
					}
					for i, value := range values.Values {
						if text := known.text(s.File.Name.Name, value); i < len(values.Names) && text != unknownPart {
							known[s.File.Name.Name+"."+values.Names[i].Name] = text
						}
					}
				}
			}
		}
	}
	return known
}

var (
	verb    = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)
	repeats = regexp.MustCompile(unknownPart + `(?:[ :]*` + unknownPart + `)+`)
)

// text gives what an expression prints, with unknownPart for what is not in the source.
func (c constants) text(pkg string, expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return repeats.ReplaceAllString(c.text(pkg, e.X)+c.text(pkg, e.Y), unknownPart)
		}
	case *ast.ParenExpr:
		return c.text(pkg, e.X)
	case *ast.Ident:
		if text, ok := c[pkg+"."+e.Name]; ok {
			return text
		}
	case *ast.SelectorExpr:
		if of, ok := e.X.(*ast.Ident); ok {
			if text, ok := c[of.Name+"."+e.Sel.Name]; ok {
				return text
			}
		}
	case *ast.CallExpr:
		return c.call(pkg, e)
	}
	return unknownPart
}

func (c constants) call(pkg string, call *ast.CallExpr) string {
	if len(call.Args) == 0 {
		return unknownPart
	}
	switch calledName(call) {
	case "fmt.Errorf", "fmt.Sprintf":
		format := strings.ReplaceAll(c.text(pkg, call.Args[0]), "%%", "%")
		// A sentinel in the first place is part of the text.
		if strings.HasPrefix(format, "%w") && len(call.Args) > 1 {
			format = c.text(pkg, call.Args[1]) + format[len("%w"):]
		}
		return repeats.ReplaceAllString(verb.ReplaceAllString(format, unknownPart), unknownPart)
	case "errors.New", "hint.Wrap", "app.Finding", "Finding":
		return c.text(pkg, call.Args[0])
	case "cmp.Or":
		return c.text(pkg, call.Args[len(call.Args)-1])
	}
	return unknownPart
}

// calledName is the function or method that is called: fmt.Errorf, d.fail, logger.Warn.
func calledName(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if of, ok := f.X.(*ast.Ident); ok {
			return of.Name + "." + f.Sel.Name
		}
		return "." + f.Sel.Name
	}
	return ""
}

// methodName is the last part of calledName.
func methodName(call *ast.CallExpr) string {
	name := calledName(call)
	return name[strings.LastIndex(name, ".")+1:]
}
