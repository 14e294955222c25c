package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

const (
	// nodeCritical is the priority class of pods that a node needs before any other runs: networks, proxies, volume
	// drivers.
	nodeCritical = "system-node-critical"
	// registrations is part of the path where the kubelet finds the volume drivers (CSI) of its node.
	registrations = "/plugins_registry"
	// searchEvery is the time between two searches: each lists all DaemonSets of the cluster.
	searchEvery = time.Minute
	// pageSize bounds a page of a list.
	pageSize = 500
)

// deadlock returns why failurePolicy Fail would be dangerous, and the setting that helps; empty if it would not be.
// After a power cut everything is down at the same time. What this pod needs in order to start must then start without
// it: with Fail, its pods would wait for a review that this pod cannot answer yet.
//
// The result is cached; fresh forces a search, for a caller that is about to arm.
func (c *Cluster) deadlock(ctx context.Context, fresh bool) (string, error) {
	if now := time.Now(); fresh || now.After(c.searchedAt.Add(searchEvery)) {
		why, err := c.search(ctx)
		if err != nil {
			return "", err
		}
		c.searchedAt, c.blocking = now, why
	}
	return c.blocking, nil
}

// search is deadlock without the cache. It reports risks that hold nothing back, too.
func (c *Cluster) search(ctx context.Context) (string, error) {
	c.lacking = nil // of a search that failed
	pod, err := c.pod(ctx)
	if err != nil {
		return "", err
	}
	nodes, err := c.neededDaemonSets(ctx, pod)
	if err != nil {
		return "", err
	}
	gates, err := c.gates(ctx, pod)
	if err != nil {
		return "", err
	}
	if err := c.searchProvisioners(ctx); err != nil {
		return "", err
	}
	c.reportRights()
	return c.complain(nodes, gates, c.engines()), nil
}

// engines returns the services of the cluster without which this process does not start: those of journal and blobs.
func (c *Cluster) engines() needs {
	found := needs{}
	for _, host := range c.o.Engines {
		if namespace := kube.NamespaceOf(host); namespace != "" {
			found[namespace] = fmt.Sprintf("%.100s", host)
		}
	}
	return found
}

// members returns the pods of the manifest's etcd whose journal this process uses.
func (c *Cluster) members() (pods []string) {
	for _, host := range c.o.Engines {
		pod, service, _ := strings.Cut(strings.ToLower(host), ".")
		if strings.HasPrefix(service, kube.EtcdName+".") && kube.NamespaceOf(host) == c.o.Namespace {
			pods = append(pods, pod)
		}
	}
	return pods
}

// pod returns the pod of this process, or nil if the process does not run in one. Of several replicas it is what their
// Deployment makes pods from: its labels and volumes count here.
func (c *Cluster) pod(ctx context.Context) (*corev1.Pod, error) {
	if c.replicated() {
		d, err := c.deployment(ctx)
		if err != nil {
			return nil, err
		}
		return &corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}, nil
	}
	if c.o.Pod == "" {
		return nil, nil
	}
	return c.o.Client.Pods(c.o.Namespace).Get(ctx, c.o.Pod, metav1.GetOptions{})
}

// needs is what must start while this pod is down: a description by namespace.
type needs map[string]string

// neededDaemonSets returns the DaemonSets that nodes and the volume of this pod need.
func (c *Cluster) neededDaemonSets(ctx context.Context, pod *corev1.Pod) (needs, error) {
	drivers, err := c.drivers(ctx, pod)
	if err != nil {
		return nil, err
	}
	needed := needs{}
	need := func(d *appsv1.DaemonSet) { needed[d.Namespace] = "DaemonSet " + d.Namespace + "/" + d.Name }
	var registrars []*appsv1.DaemonSet
	found := map[string]bool{}
	err = c.daemonSets(ctx, func(d *appsv1.DaemonSet) {
		template := &d.Spec.Template.Spec
		if template.PriorityClassName == nodeCritical {
			need(d)
		}
		if !mentions(template, registrations) {
			return
		}
		registrars = append(registrars, d)
		for _, driver := range drivers {
			if mentions(template, driver) {
				found[driver] = true
				need(d)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if len(found) < len(drivers) { // no DaemonSet mentions the driver by name, so any of them may be the driver
		for _, d := range registrars {
			need(d)
		}
	}
	return needed, nil
}

// complain names the namespaces that should be exempt and are not, and why.
func (c *Cluster) complain(nodes, gates, engines needs) string {
	exempt := c.exempt()
	var missing, clauses []string
	for _, kind := range []struct {
		needed needs
		clause string
	}{
		{nodes, "nodes or the registry's volume need %s, whose pods could not start while the registry is down"},
		{gates, "the registry's own pod must be approved by %s, whose pods could not start while the registry is down"},
		{engines, "the registry needs %s in order to start, whose pods could not start while the registry is down"},
	} {
		var because []string
		for namespace, what := range kind.needed {
			if !slices.Contains(exempt, namespace) {
				missing = append(missing, namespace)
				because = append(because, what)
			}
		}
		if slices.Sort(because); len(because) > 0 {
			clauses = append(clauses, fmt.Sprintf(kind.clause, strings.Join(because, ", ")))
		}
	}
	if len(missing) == 0 {
		return ""
	}
	slices.Sort(missing)
	return fmt.Sprintf("%s; add to the setting exempt-namespaces: %s", strings.Join(clauses, "; "),
		strings.Join(slices.Compact(missing), ", "))
}

// drivers returns the CSI drivers of the volumes of this pod, and of those of the manifest's etcd.
func (c *Cluster) drivers(ctx context.Context, pod *corev1.Pod) ([]string, error) {
	if pod == nil {
		return nil, nil
	}
	var drivers []string
	add := func(claim string) error {
		driver, err := c.driver(ctx, claim)
		if driver != "" && !slices.Contains(drivers, driver) {
			drivers = append(drivers, driver)
		}
		return err
	}
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		if err := add(v.PersistentVolumeClaim.ClaimName); err != nil {
			return nil, err
		}
	}
	for _, member := range c.members() {
		err := add("data-" + member)
		if apierrors.IsForbidden(err) {
			return drivers, c.without(err, "the volumes of "+kube.EtcdName)
		}
		if err != nil && !apierrors.IsNotFound(err) { // a member that was never started
			return nil, err
		}
	}
	return drivers, nil
}

// driver returns the CSI driver of a claim's volume, empty if the volume is of another kind.
func (c *Cluster) driver(ctx context.Context, claim string) (string, error) {
	pvc, err := c.o.Client.PersistentVolumeClaims(c.o.Namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil || pvc.Spec.VolumeName == "" {
		return "", err
	}
	pv, err := c.o.Client.PersistentVolumes.Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", err
	case pv.Spec.CSI == nil:
		return "", nil
	}
	return pv.Spec.CSI.Driver, nil
}

// daemonSets calls visit for each DaemonSet of the cluster.
func (c *Cluster) daemonSets(ctx context.Context, visit func(*appsv1.DaemonSet)) error {
	return pages(func(o metav1.ListOptions) (string, error) {
		list, err := c.o.Client.DaemonSets(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return "", err
		}
		for i := range list.Items {
			visit(&list.Items[i])
		}
		return list.Continue, nil
	})
}

// pages calls list for each page of a list; list returns the token of the next one, empty after the last.
func pages(list func(metav1.ListOptions) (string, error)) (err error) {
	o := metav1.ListOptions{Limit: pageSize}
	for {
		if o.Continue, err = list(o); err != nil || o.Continue == "" {
			return err
		}
	}
}

// mentions reports whether a pod spec has this text in a host path, an argument or a variable.
func mentions(spec *corev1.PodSpec, text string) bool {
	for _, v := range spec.Volumes {
		if v.HostPath != nil && strings.Contains(v.HostPath.Path, text) {
			return true
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		contains := func(s string) bool { return strings.Contains(s, text) }
		if slices.ContainsFunc(slices.Concat(c.Command, c.Args), contains) ||
			slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return contains(e.Value) }) {
			return true
		}
	}
	return false
}
