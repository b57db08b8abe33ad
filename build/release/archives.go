package release

import (
	"archive/tar"
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Archives with nothing of the machine that makes them in it: owner, time and order are fixed.

// writeTarFile adds a file.
func writeTarFile(w *tar.Writer, name string, mode int64, data []byte, at time.Time) error {
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), ModTime: at.UTC(), Format: tar.FormatUSTAR,
	}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// writeTar writes the files of a folder, sorted.
func writeTar(file string, from fs.FS, at time.Time) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(f)
	// WalkDir is in lexical order.
	err = fs.WalkDir(from, ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || path == ".":
			return err
		case d.IsDir():
			return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: 0o755, ModTime: at.UTC(), Format: tar.FormatUSTAR})
		}
		data, err := fs.ReadFile(from, path)
		if err != nil {
			return err
		}
		return writeTarFile(archive, path, 0o644, data, at)
	})
	return errors.Join(err, archive.Close(), f.Close())
}

// extractTar writes the files of an archive to a folder. Only files and folders may be in it.
func extractTar(file, to string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	// A root keeps the paths of a foreign archive inside of the folder.
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	return readTar(f, "archive.tar", func(name string, mode os.FileMode, content io.Reader) error {
		if mode.IsDir() {
			return root.MkdirAll(name, 0o755)
		}
		if !mode.IsRegular() {
			return fmt.Errorf("%s is not a file", name)
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		out, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, content)
		return errors.Join(err, out.Close())
	})
}

// writeZipFile adds a file.
func writeZipFile(w *zip.Writer, name string, mode os.FileMode, data []byte, at time.Time) error {
	header := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: at.UTC()}
	header.SetMode(mode)
	out, err := w.CreateHeader(header)
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}
