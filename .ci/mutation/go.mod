module trow/mutation

go 1.26
