package check

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"trow/admission"
)

// maxFiles bounds the files that one directory is read for.
const maxFiles = 10_000

// extensions are those of the files of a directory that are read.
var extensions = []string{".yaml", ".yml", ".json"}

// read calls each with the documents of a file, of every file with manifests in a directory, or of in for "-". It goes
// on after a file that cannot be read. report gets the errors.
func read(in io.Reader, name string, each func(file string, docs []admission.Document), report func(error)) {
	open := func(file string, r io.Reader) {
		docs, err := admission.ReadDocuments(r)
		if err != nil {
			report(fmt.Errorf("%s: %w", file, err))
			return
		}
		each(file, docs)
	}
	if name == "-" {
		open(name, in)
		return
	}
	info, err := os.Stat(name)
	if err == nil && info.IsDir() {
		err = readDir(name, open, report)
	} else if err == nil {
		var f *os.File
		if f, err = os.Open(name); err == nil {
			defer f.Close()
			open(name, f)
		}
	}
	if err != nil {
		report(err)
	}
}

// readDir opens the files with manifests of a directory and those below it, in the order of their names. Names that
// start with a dot are left out. A symbolic link is followed to a file within the directory only, and never to another
// directory: a link must not make the program read what is elsewhere, or read without an end.
func readDir(dir string, open func(string, io.Reader), report func(error)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	n := 0
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		file := filepath.Join(dir, path)
		switch {
		case err != nil:
			report(fmt.Errorf("%s: %w", file, err))
			return nil
		case path != "." && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() || !slices.Contains(extensions, strings.ToLower(filepath.Ext(path))):
			return nil
		}
		if n++; n > maxFiles {
			return fmt.Errorf("%s: more than %d files; check its parts", dir, maxFiles)
		}
		info, err := root.Stat(path) // fails for a link that leads out
		switch {
		case err != nil:
			report(fmt.Errorf("%s: %w", file, err))
			return nil
		case info.IsDir() && d.Type()&fs.ModeSymlink != 0:
			return nil
		case !info.Mode().IsRegular():
			report(fmt.Errorf("%s: %w", file, errors.New("not a regular file")))
			return nil
		}
		f, err := root.Open(path)
		if err != nil {
			report(fmt.Errorf("%s: %w", file, err))
			return nil
		}
		defer f.Close()
		open(file, f)
		return nil
	})
}
