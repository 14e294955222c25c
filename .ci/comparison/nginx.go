package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// answerFile is the file in the store of nginx that has its answer to a review.
const answerFile = "answer.json"

var nginxFuncs = template.FuncMap{"quote": nginxQuote, "in": filepath.Join}

// nginxConfig is a complete configuration: two workers, for the two cores of a small machine; sendfile; an access log
// in the default format; persistent connections. All its directories are below its own, so that another nginx on the
// machine is not affected. `return` reads and drops the body of a request.
var nginxConfig = template.Must(template.New("nginx").Funcs(nginxFuncs).Parse(`daemon off;
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

// nginxQuote quotes a string for nginx's configuration.
func nginxQuote(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
}

// renderNginx returns the configuration for a place. Errors: the answer has a dollar sign, which nginx would read as
// the start of a variable's name.
func renderNginx(p place, answer string) (string, error) {
	if strings.Contains(answer, "$") {
		return "", errors.New("nginx: the answer to a review has a dollar sign, which its configuration cannot express")
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
	args := []string{"-p", p.dir, "-e", filepath.Join(p.dir, "error.log"), "-c", path}
	return command{args: args}, os.WriteFile(path, []byte(text), 0o600)
}
