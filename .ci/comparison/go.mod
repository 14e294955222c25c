module trow/comparison

go 1.26
