package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"trow/storage"
)

var _ storage.Keeper = (*Objects)(nil)

// Copies implements [storage.Keeper].
func (s *Service) Copies(context.Context) (all []storage.Copy, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.copies {
		if c, ok := storage.ParseCopy(name); ok {
			all = append(all, c)
		}
	}
	return all, nil
}

// WriteCopy implements [storage.Keeper].
func (s *Service) WriteCopy(_ context.Context, name string, write func(io.Writer) error) error {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	s.SetCopy(name, b.Bytes())
	return nil
}

// SetCopy stores any bytes as a copy, so that tests can have damaged ones.
func (s *Service) SetCopy(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.copies == nil {
		s.copies = map[string][]byte{}
	}
	s.copies[name] = data
}

// OpenCopy implements [storage.Keeper].
func (s *Service) OpenCopy(_ context.Context, name string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.copies[name]
	if !ok {
		return nil, fmt.Errorf("copy %s: %w", name, storage.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// OpenObject implements [storage.Keeper].
func (s *Service) OpenObject(_ context.Context, place string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	object, ok := s.objects[place]
	if !ok {
		return nil, fmt.Errorf("object %s: %w", place, storage.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(object.data)), nil
}

// RemoveCopies implements [storage.Keeper].
func (s *Service) RemoveCopies(_ context.Context, names ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		delete(s.copies, name)
	}
	return nil
}
