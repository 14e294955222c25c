package local

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// CertificateRemedy returns what to do about a service's certificate that was refused; empty if err is about something
// else. ca is the name of the setting of its CA.
func CertificateRemedy(err error, ca string) string {
	var refused *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case !errors.As(err, &refused):
		return ""
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the certificate of the service, or set the clock of this machine"
	case errors.As(err, &name):
		return "give the service a certificate for this name, or name it as its certificate does"
	}
	return "set " + ca + " to the certificate of its CA"
}
