package berth

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// maxTold is how many differences Unlike tells.
const maxTold = 3

// Unlike says how a pod, as the API server has it, is not the berth that PodFor made, "" if it is. Every field has to be as
// it was made, but for what the API server's defaults and the admission of clusters add, see admitted.
func Unlike(pod, made *corev1.Pod) (string, error) {
	is, isErr := leavesOfPod(pod)
	was, wasErr := leavesOfPod(made)
	if err := errors.Join(isErr, wasErr); err != nil {
		return "", err
	}
	paths := maps.Clone(was)
	maps.Copy(paths, is)
	var told []string
	for _, field := range slices.Sorted(maps.Keys(paths)) {
		from, to := was[field], is[field]
		if from == to || admitted(field, from, to) {
			continue
		}
		told = append(told, fmt.Sprintf("%s is %.100q, not %.100q", field, to, from))
	}
	if len(told) > maxTold {
		told = append(told[:maxTold], "and more")
	}
	return strings.Join(told, ", "), nil
}

// leavesOfPod are the values of what a berth is made with, by their paths.
func leavesOfPod(pod *corev1.Pod) (map[string]string, error) {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&pod.Spec)
	leaves := map[string]string{}
	flatten(leaves, "spec", spec)
	for _, finalizer := range pod.Finalizers {
		leaves[join("finalizers", finalizer)] = "set"
	}
	for key, value := range pod.Labels {
		leaves[join("labels", key)] = value
	}
	for key, value := range pod.Annotations {
		if key != AnnotationSpec { // which Changes reads
			leaves[join("annotations", key)] = value
		}
	}
	return leaves, fault.Doing(err, "encoding pod")
}

// inGuest begins the patterns of the container's fields.
const inGuest = `spec\.containers\[guest\]\.`

// diskMounts begins the fields of a claim's mount, to which nothing is added: not even that it is only read.
const diskMounts = "spec.containers[guest].volumeMounts[" + diskVolumes

var (
	// freeFields may be anything: they decide where and when the pod runs, and not what.
	freeFields = pattern(
		`spec\.(tolerations|topologySpreadConstraints|imagePullSecrets|readinessGates|schedulingGates)\b.*`,
		`spec\.affinity\.(podAffinity|podAntiAffinity|nodeAffinity\.preferred).*`,
		`spec\.(priority|preemptionPolicy|priorityClassName|schedulerName|nodeName|serviceAccount|serviceAccountName)`,
		`spec\.(terminationGracePeriodSeconds|dnsPolicy|dnsConfig\b.*|hostAliases\b.*)`,
		inGuest+`(imagePullPolicy|resizePolicy\b.*)`,
	)
	// addedFields may be there though a berth is made without them.
	addedFields = pattern(
		`(labels|finalizers|spec\.nodeSelector)\b.*`,
		`spec\.securityContext\.(fsGroup|fsGroupChangePolicy|supplementalGroups.*|seLinux.*)`,
		`spec\.volumes\[[^]]+\]\.projected\..*`, // a service account's token, which kubelet writes
		inGuest+`env\[([^G]|G[^O])[^]]*\]\..*`,  // not what Go's runtime reads; the shim reads none
		inGuest+`(startup|readiness|liveness)Probe\.([a-zA-Z]+Seconds|[a-z]+Threshold|httpGet\.(scheme|path)|grpc\.service)`,
		inGuest+`securityContext\.(seLinuxOptions\..*|capabilities\.drop\[.*)`,
		inGuest+`volumeMounts\[[^]]+\]\.(readOnly|recursiveReadOnly)`,
	)
	// addedValues may be there with this value.
	addedValues = pattern(
		`spec\.(hostUsers=true|shareProcessNamespace=false|os\.name=linux)`,
		`spec\.securityContext\.appArmorProfile\.type=RuntimeDefault`,
		inGuest+`(terminationMessagePath=/dev/termination-log|terminationMessagePolicy=File)`,
		inGuest+`securityContext\.((seccompProfile|appArmorProfile)\.type=RuntimeDefault|privileged=false|procMount=Default|runAsNonRoot=true)`,
		inGuest+`volumeMounts\[[^]]+\]\.mountPath=/var/run/secrets/.*`,
	)
	// namedLists have items that go by name, so that another order, or more of them, says nothing yet.
	namedLists     = pattern(`spec\.volumes`, inGuest+`(env|volumeMounts)`)
	resourceFields = pattern(inGuest + `resources\.(requests|limits)\b.*`)
)

func pattern(alternatives ...string) *regexp.Regexp {
	return regexp.MustCompile(`^(` + strings.Join(alternatives, "|") + `)$`)
}

// admitted: a field may become to, which was made as from; each is "" where there is no such field.
func admitted(field, from, to string) bool {
	switch {
	case freeFields.MatchString(field):
		return true
	case resourceFields.MatchString(field):
		return from == "" || atLeast(to, from)
	case namedLists.MatchString(field):
		names := strings.Fields(strings.Trim(to, "[]"))
		return len(slices.Compact(slices.Sorted(slices.Values(names)))) == len(names) // none is there twice
	case field == "spec.containers[guest].image":
		return SameImage(to, from)
	case from != "", strings.HasPrefix(field, diskMounts):
		return false
	case strings.HasPrefix(field, "annotations"):
		key := strings.Trim(strings.TrimPrefix(field, "annotations"), ".[]")
		return !forbidden(key)
	}
	return addedFields.MatchString(field) || addedValues.MatchString(field+"="+to)
}

func atLeast(quantity, least string) bool {
	has, hasErr := resource.ParseQuantity(quantity)
	needs, needsErr := resource.ParseQuantity(least)
	return hasErr == nil && needsErr == nil && has.Cmp(needs) >= 0
}

// SameImage: an image may come from a mirror, whose name nobody can know here, and have its digest instead of its tag.
func SameImage(image, made string) bool {
	name := func(reference string) (repository, tag, digest string) {
		reference, digest, _ = strings.Cut(path.Base(reference), "@")
		repository, tag, _ = strings.Cut(reference, ":")
		return repository, tag, digest
	}
	repository, tag, digest := name(image)
	madeRepository, madeTag, madeDigest := name(made)
	return repository == madeRepository && (tag == madeTag || digest != "" && tag == "") && (madeDigest == "" || digest == madeDigest)
}

// Mutation says what of a berth is no longer as the operator accepted it when it named it in the status, "" if all is. It
// looks at what the API server lets anybody change of a pod: image, debug containers and resources. What is found decides
// whether a guest starts, and never whether one goes on running.
func Mutation(pod *corev1.Pod, vm *v1alpha1.VirtualMachine) string {
	for _, c := range pod.Spec.EphemeralContainers {
		return fmt.Sprintf("debug container %q was added", c.Name)
	}
	named := vm.Status.Berth
	for _, c := range pod.Spec.Containers {
		switch limit := c.Resources.Limits.Memory(); {
		case named != nil && named.PodUID == pod.UID && named.Image != "" && c.Image != named.Image:
			return fmt.Sprintf("the image of container %s is %.200s, not %s", c.Name, c.Image, named.Image)
		case limit.Value() < vm.Spec.Memory.Size.Value():
			return fmt.Sprintf("the memory limit of container %s is %s, less than the guest's memory", c.Name, limit)
		}
	}
	return ""
}

// Image is the image of a berth's container.
func Image(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		return c.Image
	}
	return ""
}
