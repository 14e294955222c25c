module trow/cache

go 1.26.0
