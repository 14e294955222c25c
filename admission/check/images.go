package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/admission"
	"trow/manifests/kube"
)

// Cluster is what the commands of the registry need to know of pods and clusters.
type Cluster struct{}

// Servers are the host[:port] under which nodes reach the registry.
func (Cluster) Servers() []string { return kube.DefaultServers() }

// Images returns the images of the pods in files with manifests, each once, as trow check reads them: YAML or JSON, in
// a file, a directory, or in for "-". note gets which objects may have images in a place that is not known. Errors: a
// file, a document or an object that cannot be read; there is no image.
func (Cluster) Images(in io.Reader, files []string, note func(text string)) (images []string, err error) {
	var first error
	failed := 0
	report := func(err error) {
		failed++
		first = cmp.Or(first, err)
	}
	each := func(file string, docs []admission.Document) {
		for _, d := range docs {
			if d.Err != nil {
				report(fmt.Errorf("%s:%d:%d: %w", file, d.Number, d.Line, d.Err))
				continue
			}
			where := (&result{File: file, Line: d.Line, Kind: d.Kind, Name: d.Name}).where()
			found, err := d.Images()
			if err != nil {
				report(fmt.Errorf("%s: %w", where, err))
			}
			images = addNew(images, found)
			if len(d.NotJudged) > 0 {
				note(fmt.Sprintf("%s: %s may name images that no pod template has; name them as well", where,
					strings.Join(d.NotJudged, ", ")))
			}
		}
	}
	for _, file := range files {
		read(in, file, each, report)
	}
	switch {
	case failed > 1:
		return nil, fmt.Errorf("%w; and %d more", first, failed-1)
	case failed == 1:
		return nil, first
	case len(images) == 0:
		return nil, fmt.Errorf("no pod in %s has an image", strings.Join(files, ", "))
	}
	return images, nil
}

// runningPage is how many pods are listed at a time, as kubectl does.
const runningPage = 500

// insteadOfRunning ends an error with the other way to get the images of pods.
const insteadOfRunning = "or let kubectl list them: kubectl get pods -A -o yaml | trow … -f -"

// Running returns the images of the pods of a cluster that have not ended, each once, and the platforms of its nodes as
// far as they may be listed. It connects as kubectl does or, without a kubeconfig, with the ServiceAccount of the pod
// that this process runs in. Errors: those of the connection and of the API server, with the remedy.
func (Cluster) Running(ctx context.Context, kubeconfig, kubecontext string) (images, platforms []string, err error) {
	client, err := kube.FromKubeconfig(kubeconfig, kubecontext)
	if err != nil && kubeconfig == "" && kube.Inside() {
		client, _, err = kube.InCluster()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("running: %s; name a kubeconfig with --kubeconfig, %s",
			strings.Join(strings.Fields(err.Error()), " "), insteadOfRunning)
	}
	return running(ctx, client)
}

func running(ctx context.Context, client *kube.Client) (images, platforms []string, err error) {
	o := metav1.ListOptions{Limit: runningPage, FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"}
	for {
		page, err := client.Pods(metav1.NamespaceAll).List(ctx, o)
		if apierrors.IsForbidden(err) {
			return nil, nil, fmt.Errorf("running: %w; use a kubeconfig that may list pods, %s", err, insteadOfRunning)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("running: %w", err)
		}
		for i := range page.Items {
			images = addNew(images, imagesOf(&page.Items[i].Spec))
		}
		if o.Continue = page.Continue; o.Continue == "" {
			break
		}
	}
	if len(images) == 0 {
		return nil, nil, errors.New("running: the cluster has no pod")
	}
	nodes, err := client.Nodes.List(ctx, metav1.ListOptions{})
	if err != nil { // not everybody who may list pods may list nodes; the server knows its own platform
		return images, nil, nil
	}
	for _, n := range nodes.Items {
		if i := n.Status.NodeInfo; i.OperatingSystem != "" && i.Architecture != "" {
			platforms = addNew(platforms, []string{i.OperatingSystem + "/" + i.Architecture})
		}
	}
	slices.Sort(platforms)
	return images, platforms, nil
}

// addNew appends those elements that are not in the list yet.
func addNew(to, more []string) []string {
	for _, text := range more {
		if !slices.Contains(to, text) {
			to = append(to, text)
		}
	}
	return to
}

// imagesOf returns the images of a pod.
func imagesOf(spec *corev1.PodSpec) (images []string) {
	for _, c := range append(slices.Clone(spec.Containers), spec.InitContainers...) {
		images = append(images, c.Image)
	}
	for _, c := range spec.EphemeralContainers {
		images = append(images, c.Image)
	}
	for _, v := range spec.Volumes {
		if v.Image != nil {
			images = append(images, v.Image.Reference)
		}
	}
	return slices.DeleteFunc(images, func(image string) bool { return image == "" })
}
