package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a started program of the cluster.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended
	err  error         // the result of Wait; set before done is closed
}

// processes are the running programs of a cluster.
type processes struct {
	mu      sync.Mutex          // guards running
	running map[string]*process // by the component's name
}

// start starts a program, whose output is appended to a file.
func (p *processes) start(name string, args, env []string, log string) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[name] != nil {
		return nil, fmt.Errorf("%s is running already", name)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	if !strings.Contains(args[0], "/") {
		if cmd.Path, err = lookPath(args[0], env); err != nil {
			return nil, err
		}
		cmd.Err = nil // exec.Command has searched the PATH of this process
	}
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Ctrl-C does not reach it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	proc := &process{cmd: cmd, done: make(chan struct{})}
	p.running[name] = proc
	go func() {
		proc.err = cmd.Wait()
		close(proc.done)
	}()
	return proc, nil
}

// stop stops a program: with the signal and, if that is not enough, with SIGKILL.
func (p *processes) stop(name string, signal syscall.Signal) error {
	p.mu.Lock()
	proc := p.running[name]
	delete(p.running, name)
	p.mu.Unlock()
	if proc == nil {
		return fmt.Errorf("%s is not running", name)
	}
	_ = proc.cmd.Process.Signal(signal) // fails if it has ended already
	select {
	case <-proc.done:
		return nil
	case <-time.After(20 * time.Second):
	}
	_ = proc.cmd.Process.Kill()
	<-proc.done
	return nil
}

// lookPath finds a program in the PATH of an environment.
func lookPath(name string, env []string) (string, error) {
	for _, e := range env {
		path, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return found, nil
			}
		}
	}
	return "", fmt.Errorf("%s not found in PATH", name)
}

// waitReady waits until the check succeeds. Error: the process ends before that; two minutes pass.
func (proc *process) waitReady(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-proc.done:
			return fmt.Errorf("ended (%v) before it was ready: %w", proc.err, err)
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// killContainers kills the processes of all containers and their shims, without containerd's knowledge.
func killContainers(cgroup string) error {
	for range 200 {
		pids, err := containerProcesses(cgroup)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // fails if it has ended
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("killed processes of containers do not end")
}

// PodProcess returns the ID of the process of that name in a pod.
func PodProcess(uid, name string) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		cgroups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if string(comm) == name+"\n" && strings.Contains(string(cgroups), "/pod"+uid+"/") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("pod %s has no process %s", uid, name)
}

// containerProcesses returns the processes of shims, and those in the cgroup. All processes of this PID namespace
// belong to the cluster.
func containerProcesses(cgroup string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		cgroups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		status, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if strings.Contains(string(status), "State:\tZ") {
			continue
		}
		if strings.HasPrefix(string(comm), "containerd-shim") || strings.Contains(string(cgroups), ":/"+cgroup+"/") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
