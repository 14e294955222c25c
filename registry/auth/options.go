package auth

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/audit"
	"trow/registry/namespace"
	"trow/registry/settings"
)

// Options are what a Guard is made of: first the settings, then what the program sets.
type Options struct {
	// User may do everything. Empty: there is no such user.
	User         string
	Password     string
	PasswordFile string // Validate reads it into Password
	// Htpasswd is a file of users, with bcrypt hashes. It is read again when it changes. Optional.
	Htpasswd string
	// Anonymous is what may be done without a login where there are no rules: none, pull, create or push. Empty: none
	// if there is a user, a file of users, a CA of clients, or a rule; else create, and push for private requests.
	Anonymous string
	// Rules say who may do what. They cannot be combined with Anonymous.
	Rules []Rule
	// PublicURL is how clients reach the registry, https://host[:port][/path], where that is not in their Host header.
	// Optional.
	PublicURL string
	// TokenLifetime is how long a token is valid, and PushTokenLifetime how long one with which a user, a robot or
	// everybody may push. 0: 5 minutes, and an hour.
	TokenLifetime, PushTokenLifetime time.Duration
	// TrustedProxies are addresses and networks of proxies whose X-Forwarded-Proto says where clients are sent for
	// tokens.
	TrustedProxies []string

	// PlainHTTP reports whether the listener speaks plain HTTP (the setting no-tls).
	PlainHTTP bool
	// Dir is where earlier versions kept the keys that sign tokens, and the robots; see oldfiles.go. It need not exist.
	Dir string
	// ReadOnly reports that nothing may be written: robots stay as they are, and a new key is not kept.
	ReadOnly bool
	// Name is the host[:port] that goes into challenges for clients that send no valid Host header.
	Name string
	// Loopback reports whether the registry listens on a loopback address only: then requests can be private.
	Loopback bool
	// ClientCA reports whether clients can log in with certificates (the setting client-ca).
	ClientCA bool
	// Certificate returns the certificate of a request's connection, verified and currently valid, or nil.
	// Optional: without it certificates prove nothing.
	Certificate func(*http.Request) *x509.Certificate
	// Reviewer asks the Kubernetes API whose a token is. Optional.
	Reviewer Reviewer
	// Accesses asks the Kubernetes API what accounts of the cluster may do where no rule decides. Optional.
	Accesses AccessReviewer
	// AccessReview reports whether the Kubernetes API is asked that (the setting access-review). Where there are
	// Accesses it is implied; commands that do not ask the API set it, so that they do not decide in its place.
	AccessReview bool
	// Forms bounds the memory of the forms that the token endpoint reads. Optional.
	Forms Bodies
	// Annotate attaches a fact to the request's line in the access log. Optional.
	Annotate func(ctx context.Context, key, value string)
	// Audit records logins that fail, and what Protect refuses. Optional.
	Audit func(context.Context, audit.Event)
	// Readers is that of PolicyOptions. Optional.
	Readers Readers
	// Restricted is that of PolicyOptions. Optional.
	Restricted func() bool
	// Learn makes sure that Readers knows of a repository below f/, for tokens; kind and ref are empty. Optional.
	// Errors: it cannot be known now; then the token does not have the repository.
	Learn func(ctx context.Context, repo, kind, ref string) error
	// Namespaces says which hosts of ours stand for another registry. Optional.
	Namespaces *namespace.Table
	// Program is how people run the commands of the server, for messages; empty: trow.
	Program string
	// Log is the program's log.
	Log zerolog.Logger

	passwordRead bool // Password is the content of PasswordFile
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVarP(&o.User, "user", "u", "", "the user who may do everything")
	fs.StringVarP(&o.Password, "password", "p", "",
		"the user's password; other processes can see it, so password-file is better")
	fs.StringVar(&o.PasswordFile, "password-file", "",
		"file with the user's password; what is not a regular file, such as a pipe, is read once")
	fs.StringVar(&o.Htpasswd, "htpasswd", "",
		"file of further users, with bcrypt hashes (htpasswd -B); read again when it changes")
	fs.StringVar(&o.Anonymous, "anonymous", "",
		"what may be done without a login: pull, create (push, but move no tag), push or none "+
			"(default: create, or push for private requests; none with users, rules or client-ca)")
	settings.FileOnly(fs, &o.Rules, "rules", "who may do what, by repository; read again when it changes")
	fs.StringVar(&o.PublicURL, "public-url", "",
		"how clients reach the registry, https://host[:port][/path], if a proxy in front of it terminates TLS or "+
			"changes the host; requests may come with the path or without it")
	fs.DurationVar(&o.TokenLifetime, "token-lifetime", tokenLife,
		"how long the tokens that clients get at /token are valid")
	fs.DurationVar(&o.PushTokenLifetime, "push-token-lifetime", pushTokenLife,
		"the same for tokens with which users, robots or everybody may push: longer than the slowest layer takes")
	fs.StringSliceVar(&o.TrustedProxies, "trusted-proxies", nil, "addresses and networks (10.0.0.0/8) of proxies in "+
		"front of no-tls; their X-Forwarded-Proto decides whether clients are sent to https for tokens, and nothing "+
		"else")
}

// Validate reports the first invalid setting, and reads the password's file. It can be called more than once.
func (o *Options) Validate() error {
	if o.PasswordFile != "" && !o.passwordRead {
		if o.Password != "" {
			return errors.New("password-file: conflicts with password; give one of the two")
		}
		var err error
		if o.Password, err = readPassword(o.PasswordFile); err != nil {
			return err
		}
		o.passwordRead = true
	}
	if len(o.Rules) > 0 && o.Anonymous != "" {
		return errors.New("anonymous: cannot be combined with rules; add a rule with who: [anonymous] instead")
	}
	if _, err := parseURL(o.PublicURL); err != nil {
		return err
	}
	if _, err := parseProxies(o.TrustedProxies); err != nil {
		return err
	}
	for name, life := range map[string]time.Duration{"token-lifetime": o.TokenLifetime,
		"push-token-lifetime": o.PushTokenLifetime} {
		if life != 0 && (life < minTokenLife || life > maxTokenLife) {
			return fmt.Errorf("%s: %s is not possible; want %s to %s", name, life, minTokenLife, maxTokenLife)
		}
	}
	if err := o.checkPlain(); err != nil {
		return err
	}
	_, err := o.Policy()
	return err
}

// checkPlain refuses logins that would send passwords over plain HTTP without anybody having asked for that.
func (o *Options) checkPlain() error {
	logins := o.User != "" || o.Htpasswd != "" || o.Reviewer != nil || slices.ContainsFunc(o.Rules, Rule.named)
	if !logins || !o.sendsToPlain() {
		return nil
	}
	return errors.New("no-tls: with logins, clients would be sent to plain HTTP with their passwords; " + plainRemedy)
}

const plainRemedy = "set public-url to the https:// address of the proxy in front, or trusted-proxies to its " +
	"addresses, or listen on 127.0.0.1; where plain HTTP is intended, set public-url to http://host[:port]"

// sendsToPlain reports whether clients are sent to plain HTTP for tokens without anybody having asked for that.
func (o *Options) sendsToPlain() bool {
	return o.PlainHTTP && !o.Loopback && o.PublicURL == "" && len(o.TrustedProxies) == 0
}

// named reports whether the rule is about somebody who logs in.
func (r Rule) named() bool {
	return slices.ContainsFunc(r.Who, func(who string) bool { return who != "*" && who != "anonymous" })
}

// lives returns how long tokens are valid.
func (o *Options) lives() lives {
	return lives{cmp.Or(o.TokenLifetime, tokenLife), cmp.Or(o.PushTokenLifetime, pushTokenLife)}
}

// Policy returns what decides according to the settings. Errors: an invalid rule; an invalid value of anonymous.
func (o *Options) Policy() (*Policy, error) {
	level, open, err := o.level()
	if err != nil {
		return nil, err
	}
	return Compile(o.Rules, PolicyOptions{Anonymous: level, Private: open && o.Loopback && o.PublicURL == "",
		Access: o.AccessReview || o.Accesses != nil, Readers: o.Readers,
		Restricted: o.Restricted})
}

// level returns what may be done without a login, and whether private requests may do everything that users may. A
// level that was set is what was asked for, and push does not include delete for requests from elsewhere.
func (o *Options) level() (level Level, open bool, err error) {
	switch {
	case o.Anonymous != "":
		if level, err = ParseLevel(o.Anonymous); err != nil {
			return None, false, fmt.Errorf("anonymous: %w", err)
		}
		return level, level == ReadWrite, nil
	case o.User != "", o.Htpasswd != "", o.ClientCA, o.Certificate != nil, len(o.Rules) > 0:
		return None, false, nil
	}
	return CreateOnly, true, nil
}
