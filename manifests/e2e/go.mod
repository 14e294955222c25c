module trow/manifests/e2e

go 1.26
