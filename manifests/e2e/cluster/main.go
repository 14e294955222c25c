package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// The environment variables that say which of the three processes this is, and where the scratch directory is.
const (
	stageVar   = "TROW_E2E_INSIDE"
	scratchVar = "TROW_E2E_SCRATCH"

	stageInit  = "init"
	stageTests = "1"
)

// signals end a run. go test sends SIGQUIT after its timeout.
var signals = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}

// Main is for TestMain: it builds everything, and calls run in private namespaces. The functions of prepare are called
// before that; they may use the network. The result is for os.Exit.
func Main(run func() int, prepare ...func(context.Context) error) int {
	flag.Parse()
	if f := flag.Lookup("test.list"); f != nil && f.Value.String() != "" {
		return run() // lists the tests, and runs none
	}
	var code int
	var err error
	switch stage := os.Getenv(stageVar); stage {
	case "":
		code, err = outside(prepare)
	case stageInit:
		code, err = initProcess()
	case stageTests:
		if err = checkInside(); err == nil {
			code = run()
		}
	default:
		err = fmt.Errorf("%s=%.20q: only the tests themselves may set this variable; unset it", stageVar, stage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return code
}

// outside prepares everything that needs the network or outlives the run, and runs the tests inside.
func outside(more []func(context.Context) error) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("the tests need root, for namespaces, mounts and containers")
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()

	scratch, err := newScratch()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, scratch.remove()) }()
	if err := prepare(ctx, scratch.dir); err != nil {
		return 0, err
	}
	for _, f := range more {
		if err := f(ctx); err != nil {
			return 0, err
		}
	}
	stop() // from now on, enter passes signals to the tests
	return enter(scratch.dir)
}

// prepare installs and builds everything that the tests need.
func prepare(ctx context.Context, dir string) error {
	if err := installPackages(ctx); err != nil {
		return err
	}
	if _, err := buildKubernetes(ctx, kubernetesVersion()); err != nil {
		return err
	}
	return buildTrow(ctx, trowBinary(dir))
}

// enter runs this program as init of new namespaces, and returns its exit code. The kernel kills it when this process
// dies.
func enter(dir string) (int, error) {
	// Pdeathsig is sent when the thread that started the child ends, so keep this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = environment(stageInit, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w; root needs CAP_SYS_ADMIN", err)
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, signals...)
	defer signal.Stop(ch)
	go func() {
		for s := range ch {
			_ = cmd.Process.Signal(s)
			// Tests that ignore the signal are killed.
			time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitCode(exit.Sys().(syscall.WaitStatus)), nil
	}
	return 0, err
}

// environment returns the environment of this process, changed for the given stage. It has each variable once.
func environment(stage, dir string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if name != stageVar && name != scratchVar {
			env = append(env, e)
		}
	}
	return append(env, stageVar+"="+stage, scratchVar+"="+dir)
}

// exitCode returns the exit code that a shell would report.
func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// initProcess is PID 1: it prepares the namespaces, runs the tests, and reaps processes without a parent, such as those
// of containers.
func initProcess() (int, error) {
	dir := os.Getenv(scratchVar)
	if os.Getpid() != 1 || dir == "" {
		return 0, fmt.Errorf("%s=%s: only the tests themselves may set this variable; unset it", stageVar, stageInit)
	}
	if err := prepareMounts(dir); err != nil {
		return 0, err
	}
	if err := syscall.Sethostname([]byte(NodeName)); err != nil {
		return 0, fmt.Errorf("set host name: %w", err)
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, signals...)
	// Not with os/exec: the loop below would reap the child before os/exec can wait for it.
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	tests, err := syscall.ForkExec(exe, os.Args,
		&syscall.ProcAttr{Env: environment(stageTests, dir), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start the tests: %w", err)
	}
	go func() {
		for s := range ch {
			_ = syscall.Kill(tests, s.(syscall.Signal))
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the tests: %w", err)
		case pid == tests:
			return exitCode(status), nil
		}
	}
}

// checkInside protects the machine from tests that run outside the namespaces because the variables were set by hand.
func checkInside() error {
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return err
	}
	parent, err := os.Stat("/proc/1/exe")
	if err != nil || os.Getppid() != 1 || !os.SameFile(own, parent) || os.Getenv(scratchVar) == "" {
		return fmt.Errorf("%s=%s: only the tests themselves may set this variable; unset it", stageVar, stageTests)
	}
	return nil
}
