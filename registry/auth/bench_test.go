package auth_test

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"trow/registry/auth"
)

// BenchmarkIdentifyAndAuthorize is what who may do what costs a request whose credentials were verified before.
func BenchmarkIdentifyAndAuthorize(b *testing.B) {
	run := func(name string, g *auth.Guard, r *http.Request) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			begin, n := processor(b), 0
			for b.Loop() {
				n++
				who, err := g.Identify(r)
				if err == nil {
					err = g.Authorize(r.Context(), who, "team/app", auth.Pull)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processor(b)-begin)/float64(n), "cpu-ns/op") // others may use the machine as well
		})
	}
	run("open", guard(b, auth.Options{Anonymous: "push"}), request())
	g := guard(b, auth.Options{User: "u", Password: "p"})
	run("basic", g, withLogin("u", "p"))
	run("bearer", g, bearer(ask(b, g, tokenGET("u", "p", "repository:team/app:pull,push"), 200).Token))
	secret, err := g.CreateRobot(b.Context(), robot("ci", "pull", "team/**"))
	if err != nil {
		b.Fatal(err)
	}
	run("robot", g, withLogin("ci", secret))
	ruled := team(b)
	run("bearer and rules", ruled, bearer(ask(b, ruled, tokenGET("bob", "bob's", "repository:team/app:pull"), 200).
		Token))
}

// processor is the time that this process has had.
func processor(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
