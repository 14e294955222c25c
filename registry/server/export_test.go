package server

import "net/http"

// Handler returns the outermost handler, for tests that need no connection.
func (s *Server) Handler() http.Handler { return s.http.Handler }
