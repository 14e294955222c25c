package service

// Reload applies changed options.
func Reload(s *Service, o Options) error { return s.reload(&o) }
