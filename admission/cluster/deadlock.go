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
)

const (
	// nodeCritical is the priority class of what a node needs before anything else runs on it: networks, proxies,
	// volume drivers.
	nodeCritical = "system-node-critical"
	// registrations is where the kubelet finds the drivers of volumes (CSI) on its node.
	registrations = "/plugins_registry"
	// checkEvery is how long an answer holds: a list of all DaemonSets is no small question.
	checkEvery = time.Minute
	// pageSize bounds a list's answer.
	pageSize = 500
)

// deadlock says why Fail would be dangerous, "" if it is not: somebody on whom this process depends to start would
// wait for this process to be asked, and the setting that helps. Everything may be down at once, after a power
// cut; what is needed by the pod of this process must then start without it.
//
// Whoever is about to arm asks afresh.
func (c *Cluster) deadlock(ctx context.Context, afresh bool) (string, error) {
	if now := time.Now(); afresh || now.After(c.checked.Add(checkEvery)) {
		why, err := c.search(ctx)
		if err != nil {
			return "", err
		}
		c.checked, c.danger = now, why
	}
	return c.danger, nil
}

// search is deadlock, without memory.
func (c *Cluster) search(ctx context.Context) (string, error) {
	drivers, err := c.drivers(ctx)
	if err != nil {
		return "", err
	}
	needed := map[string]string{} // namespace → a DaemonSet in it that must start first
	var registrars []*appsv1.DaemonSet
	found := map[string]bool{}
	err = c.daemonSets(ctx, func(d *appsv1.DaemonSet) {
		template := &d.Spec.Template.Spec
		if template.PriorityClassName == nodeCritical {
			needed[d.Namespace] = d.Name
		}
		if !mentions(template, registrations) {
			return
		}
		registrars = append(registrars, d)
		for _, driver := range drivers {
			if mentions(template, driver) {
				found[driver] = true
				needed[d.Namespace] = d.Name
			}
		}
	})
	if err != nil {
		return "", err
	}
	if len(found) < len(drivers) { // a driver that keeps its name to itself: any of them may be it
		for _, d := range registrars {
			needed[d.Namespace] = d.Name
		}
	}
	return c.complain(needed), nil
}

// complain names the namespaces that are not exempt and should be.
func (c *Cluster) complain(needed map[string]string) string {
	exempt := c.exempt()
	var missing, because []string
	for namespace, name := range needed {
		if !slices.Contains(exempt, namespace) {
			missing = append(missing, namespace)
			because = append(because, fmt.Sprintf("DaemonSet %s/%s", namespace, name))
		}
	}
	if len(missing) == 0 {
		return ""
	}
	slices.Sort(missing)
	slices.Sort(because)
	return fmt.Sprintf("nodes or this registry's volume need %s, which could not start while this registry is down; "+
		"add to the setting exempt-namespaces: %s", strings.Join(because, ", "), strings.Join(missing, ", "))
}

// drivers are the CSI drivers of the volumes of this process's pod.
func (c *Cluster) drivers(ctx context.Context) ([]string, error) {
	if c.Pod == "" {
		return nil, nil
	}
	pod, err := c.Client.Pods(c.Namespace).Get(ctx, c.Pod, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var drivers []string
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		driver, err := c.driver(ctx, v.PersistentVolumeClaim.ClaimName)
		if err != nil {
			return nil, err
		}
		if driver != "" && !slices.Contains(drivers, driver) {
			drivers = append(drivers, driver)
		}
	}
	return drivers, nil
}

// driver is the CSI driver of a claim's volume, empty if that is of another sort.
func (c *Cluster) driver(ctx context.Context, claim string) (string, error) {
	pvc, err := c.Client.PersistentVolumeClaims(c.Namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil || pvc.Spec.VolumeName == "" {
		return "", err
	}
	pv, err := c.Client.PersistentVolumes.Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
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

// daemonSets calls visit for all of the cluster.
func (c *Cluster) daemonSets(ctx context.Context, visit func(*appsv1.DaemonSet)) error {
	o := metav1.ListOptions{Limit: pageSize}
	for {
		list, err := c.Client.DaemonSets(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return err
		}
		for i := range list.Items {
			visit(&list.Items[i])
		}
		if o.Continue = list.Continue; o.Continue == "" {
			return nil
		}
	}
}

// mentions tells whether a pod is given this text: in a path of the node, in an argument or in a variable.
func mentions(spec *corev1.PodSpec, text string) bool {
	for _, v := range spec.Volumes {
		if v.HostPath != nil && strings.Contains(v.HostPath.Path, text) {
			return true
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if slices.ContainsFunc(slices.Concat(c.Command, c.Args), func(s string) bool { return strings.Contains(s, text) }) ||
			slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return strings.Contains(e.Value, text) }) {
			return true
		}
	}
	return false
}
