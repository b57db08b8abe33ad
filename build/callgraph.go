package build

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"golang.org/x/tools/go/packages"
)

// callGraph records which functions of a program's own module use which functions.
//
// A use is a call or any other mention: a function that is handed over as a value
// counts as called by the function that passes it on. So a call through a variable, a field or a
// channel needs no edge of its own. What a function literal uses, the declaration around
// it uses. A method of an interface is a function of its own; implementations has the
// methods that a call of it may reach. All of this errs on the side of too many edges.
type callGraph struct {
	// dir is the root of the tree, module its path.
	dir, module string
	// functions are all functions of the module and those outside that it uses.
	functions map[string]*function
	// packages are the types of all packages of the program, by what name calls them.
	packages map[string]*types.Package
	fset     *token.FileSet
}

// function is one function, method, method of an interface, or package-level variable
// whose initial value uses functions.
type function struct {
	// Name is the package's path, without the module's, and behind a dot the function
	// or the type with its method: pkg/kubelet.Kubelet.SyncPod.
	Name string
	// uses are the names of the functions that it uses, with each place in the order of
	// the source.
	uses map[string][]token.Pos
	// implementations are the methods that implement this one, when it is a method of an
	// interface. Methods of interfaces are among them: a wider interface has the same
	// method.
	implementations map[string]bool
	// implements is the other way round.
	implements map[string]bool
	// pos is where it is declared; not valid outside the module.
	pos token.Pos
}

// loadCallGraph type-checks everything that a main package of the module in dir is
// linked from, for Linux, without tests. Packages of other modules come from the build
// cache, which the go command fills when it has to.
func loadCallGraph(ctx context.Context, dir, module, main, tags string) (*callGraph, error) {
	list := goCommand(ctx, dir, runtime.GOARCH, "list", "-mod=readonly", "-tags", tags, "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", main)
	var stderr strings.Builder
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w\n%s", dir, err, stderr.String())
	}
	paths := strings.Fields(string(out))
	g := &callGraph{dir: dir, module: module, functions: map[string]*function{}, packages: map[string]*types.Package{}, fset: token.NewFileSet()}
	loaded, err := packages.Load(&packages.Config{
		Context: ctx,
		Dir:     dir,
		Env:     goEnv(runtime.GOARCH),
		Fset:    g.fset,
		// The flags of the tests, whose build cache is used.
		BuildFlags: []string{"-mod=readonly", "-trimpath", "-tags", tags},
		Mode:       packages.LoadSyntax,
	}, paths...)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range loaded {
		for _, e := range p.Errors {
			errs = append(errs, e)
		}
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s cannot be type-checked: %w", dir, errors.Join(errs...))
	}
	for _, p := range loaded {
		for _, file := range p.Syntax {
			for _, decl := range file.Decls {
				g.addDecl(p, decl)
			}
		}
	}
	g.addImplementations(loaded)
	packages.Visit(loaded, nil, func(p *packages.Package) {
		if p.Types != nil {
			g.packages[g.short(p.PkgPath)] = p.Types
		}
	})
	return g, nil
}

// addDecl adds the uses in one declaration at the top of a file.
func (g *callGraph) addDecl(p *packages.Package, decl ast.Decl) {
	if d, ok := decl.(*ast.FuncDecl); ok {
		obj, _ := p.TypesInfo.Defs[d.Name].(*types.Func)
		if obj == nil || d.Body == nil {
			return
		}
		f := g.function(g.name(obj))
		f.pos = d.Name.Pos()
		g.addUses(p, f, d.Body)
		return
	}
	d, ok := decl.(*ast.GenDecl)
	if !ok || d.Tok != token.VAR {
		return
	}
	for _, spec := range d.Specs {
		spec := spec.(*ast.ValueSpec)
		f := &function{Name: g.short(p.PkgPath) + "." + spec.Names[0].Name, uses: map[string][]token.Pos{}, pos: spec.Names[0].Pos()}
		for _, value := range spec.Values {
			g.addUses(p, f, value)
		}
		if len(f.uses) > 0 {
			g.functions[f.Name] = f
		}
	}
}

func (g *callGraph) addUses(p *packages.Package, f *function, n ast.Node) {
	ast.Inspect(n, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		if !ok {
			return true
		}
		obj, ok := p.TypesInfo.Uses[id].(*types.Func)
		if !ok || obj.Pkg() == nil {
			return true
		}
		used := g.name(obj)
		g.function(used)
		f.uses[used] = append(f.uses[used], id.Pos())
		return true
	})
}

// addImplementations finds which concrete methods implement which methods of interfaces
// that are used anywhere.
func (g *callGraph) addImplementations(loaded []*packages.Package) {
	type method struct {
		iface *types.Interface
		obj   *types.Func
	}
	wanted := map[string]method{}
	// Types of the module, and those of other modules whose methods it uses.
	named := map[*types.Named]bool{}
	add := func(t types.Type) {
		if p, ok := t.(*types.Pointer); ok {
			t = p.Elem()
		}
		if n, ok := t.(*types.Named); ok && n.TypeParams().Len() == 0 {
			named[n] = true
		}
	}
	for _, p := range loaded {
		for _, obj := range p.TypesInfo.Uses {
			fn, ok := obj.(*types.Func)
			if !ok {
				continue
			}
			if recv := fn.Signature().Recv(); recv != nil {
				if iface, ok := recv.Type().Underlying().(*types.Interface); ok {
					wanted[g.name(fn.Origin())] = method{iface, fn.Origin()}
				}
				add(recv.Type())
			}
		}
		for _, obj := range p.TypesInfo.Defs {
			// Types that are declared in a function count, too.
			if t, ok := obj.(*types.TypeName); ok && !t.IsAlias() {
				add(t.Type())
			}
		}
	}
	for n := range named {
		pointer := types.Type(n)
		if !types.IsInterface(n) {
			pointer = types.NewPointer(n)
		}
		set := types.NewMethodSet(pointer)
		for name, m := range wanted {
			selection := set.Lookup(m.obj.Pkg(), m.obj.Name())
			if selection == nil || !types.Implements(pointer, m.iface) {
				continue
			}
			by := g.name(selection.Obj().(*types.Func))
			if by == name {
				continue
			}
			g.function(name).implementations[by] = true
			g.function(by).implements[name] = true
		}
	}
}

func (g *callGraph) function(name string) *function {
	f := g.functions[name]
	if f == nil {
		f = &function{Name: name}
		g.functions[name] = f
	}
	if f.uses == nil {
		f.uses = map[string][]token.Pos{}
	}
	if f.implementations == nil {
		f.implementations = map[string]bool{}
		f.implements = map[string]bool{}
	}
	return f
}

// short drops the module from an import path.
func (g *callGraph) short(path string) string {
	return strings.TrimPrefix(path, g.module+"/")
}

// name names a function as the table does.
func (g *callGraph) name(fn *types.Func) string {
	fn = fn.Origin()
	prefix := ""
	if fn.Pkg() != nil {
		prefix = g.short(fn.Pkg().Path()) + "."
	}
	if recv := fn.Signature().Recv(); recv != nil {
		t := recv.Type()
		if p, ok := t.(*types.Pointer); ok {
			t = p.Elem()
		}
		switch t := t.(type) {
		case *types.Named:
			prefix += t.Obj().Name() + "."
		case *types.Interface:
			prefix += "interface."
		}
	}
	return prefix + fn.Name()
}

// place is where a position is, as the tree has it.
func (g *callGraph) place(pos token.Pos) string {
	if !pos.IsValid() {
		return "elsewhere"
	}
	p := g.fset.Position(pos)
	if rel, err := filepath.Rel(g.dir, p.Filename); err == nil {
		p.Filename = filepath.ToSlash(rel)
	}
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// methods returns the methods of an interface as functions, sorted, or nil when the
// program has no such interface.
func (g *callGraph) methods(iface string) []string {
	i := strings.LastIndex(iface, ".")
	if i < 0 {
		return nil
	}
	pkg := g.packages[iface[:i]]
	if pkg == nil {
		return nil
	}
	obj := pkg.Scope().Lookup(iface[i+1:])
	if obj == nil {
		return nil
	}
	t, ok := obj.Type().Underlying().(*types.Interface)
	if !ok {
		return nil
	}
	var names []string
	for i := range t.NumMethods() {
		names = append(names, g.name(t.Method(i)))
	}
	sort.Strings(names)
	return names
}

// alike returns a function and those whose call may run it or be run by it, because they
// are the same method of an interface and of what implements it.
func (g *callGraph) alike(name string) map[string]bool {
	all := map[string]bool{name: true}
	f := g.functions[name]
	if f == nil {
		return all
	}
	for implementation := range f.implementations {
		all[implementation] = true
		for iface := range g.functions[implementation].implements {
			all[iface] = true
		}
	}
	for iface := range f.implements {
		all[iface] = true
	}
	return all
}

// reaches reports whether a call of one function may end up in another.
func (g *callGraph) reaches(from, to string) bool {
	seen := map[string]bool{from: true}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			return true
		}
		f := g.functions[queue[0]]
		if f == nil {
			continue
		}
		next := func(name string) {
			if !seen[name] {
				seen[name] = true
				queue = append(queue, name)
			}
		}
		for used := range f.uses {
			next(used)
		}
		for implementation := range f.implementations {
			next(implementation)
		}
	}
	return false
}

// callers returns the users of each function, sorted.
func (g *callGraph) callers() map[string][]string {
	callers := map[string][]string{}
	for _, f := range g.functions {
		for used := range f.uses {
			callers[used] = append(callers[used], f.Name)
		}
	}
	for _, list := range callers {
		sort.Strings(list)
	}
	return callers
}
