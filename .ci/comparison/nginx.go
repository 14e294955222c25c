package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// answerFile is the body that nginx answers a review with, in the directory of its store.
const answerFile = "answer.json"

// nginxConfig is a whole configuration: two workers, for the two cores of a small machine; sendfile; a log of requests
// in the usual format; connections that stay. All its directories are below its own, so that no other nginx on the
// machine is touched. `return` drops a request's body, but reads it from the socket before the connection goes on.
var nginxConfig = template.Must(template.New("nginx").Funcs(template.FuncMap{"quote": nginxQuote, "in": filepath.Join}).Parse(`daemon off;
user root;
worker_processes 2;
pid {{quote (in .Dir "nginx.pid")}};
error_log {{quote (in .Dir "error.log")}};
events {
  worker_connections 4096;
}
http {
  access_log {{quote (in .Dir "access.log")}};
  client_body_temp_path {{quote (in .Dir "body")}};
  proxy_temp_path {{quote (in .Dir "proxy")}};
  fastcgi_temp_path {{quote (in .Dir "fastcgi")}};
  uwsgi_temp_path {{quote (in .Dir "uwsgi")}};
  scgi_temp_path {{quote (in .Dir "scgi")}};
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  server {
{{- if .Secure}}
    listen {{.Addr}} ssl http2;
    ssl_certificate {{quote .Cert}};
    ssl_certificate_key {{quote .Key}};
{{- else}}
    listen {{.Addr}};
{{- end}}
    root {{quote .Data}};
    default_type application/octet-stream;
    location ~ ^/v2/.+/manifests/ {
      default_type application/vnd.oci.image.manifest.v1+json;
    }
    location = /v2/ {
      default_type application/json;
      return 200 '{}';
    }
    location = /validate {
      default_type application/json;
      return 200 {{quote .Answer}};
    }
  }
}
`))

// nginxQuote writes a string as nginx's configuration does.
func nginxQuote(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
}

// renderNginx is the configuration for a place. Errors: that the answer cannot be written, as nginx would take a dollar
// for a variable's.
func renderNginx(p place, answer string) (string, error) {
	if strings.Contains(answer, "$") {
		return "", errors.New("nginx: the answer to a review has a dollar, which its configuration cannot say")
	}
	var b strings.Builder
	err := nginxConfig.Execute(&b, struct {
		Dir, Data, Addr, Cert, Key, Answer string
		Secure                             bool
	}{
		p.dir, p.data, p.addr, p.cert, p.key, answer, p.secure})
	return b.String(), err
}

func launchNginx(p place) (command, error) {
	answer, err := os.ReadFile(filepath.Join(p.data, answerFile))
	if err != nil {
		return command{}, err
	}
	text, err := renderNginx(p, string(answer))
	if err != nil {
		return command{}, err
	}
	path := filepath.Join(p.dir, "nginx.conf")
	return command{args: []string{"-p", p.dir, "-e", filepath.Join(p.dir, "error.log"), "-c", path}}, os.WriteFile(path, []byte(text), 0o600)
}
