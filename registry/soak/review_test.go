package soak

import "fmt"

// review returns an AdmissionReview of a pod.
func review(image string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",`+
		`"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},`+
		`"namespace":"default","operation":"CREATE","userInfo":{"username":"me"},"object":{"apiVersion":"v1",`+
		`"kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":%q}]}}}}`, image)
}
