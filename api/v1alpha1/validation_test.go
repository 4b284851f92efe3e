package v1alpha1_test

import (
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// object reads a VirtualMachine as kubectl would send it.
func object(t *testing.T, name, spec string) *unstructured.Unstructured {
	t.Helper()
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(spec), &fields); err != nil {
		t.Fatalf("reading %q: %v", spec, err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": fields}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("VirtualMachine"))
	u.SetNamespace("default")
	u.SetName(name)
	return u
}

func TestSchema(t *testing.T) {
	_, c := env.APIServer(t)
	const (
		ok        = "memory: {size: 1Gi}\ndisks: [{name: root, image: debian}]\n"
		disk      = "memory: {size: 1Gi}\ndisks: [{name: a, "
		cdrom     = disk + "type: CDROM, "
		claim     = disk + "persistentVolumeClaim: {claimName: a}, "
		templates = "volumeClaimTemplates: [{metadata: {name: t, labels: {a: b}}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]"
	)

	t.Run("refuses", func(t *testing.T) {
		tests := []struct{ name, spec, says string }{
			{"no memory", "disks: [{name: root, image: debian}]", "memory"},
			{"nothing to boot from", "memory: {size: 1Gi}", "give disks or kernel"},
			{"memory that is no quantity", "memory: {size: lots}\ndisks: [{name: root, image: a}]", "size"},
			{"memory of nothing", "memory: {size: \"0\"}\ndisks: [{name: root, image: a}]", "16Mi to 16Ti"},
			{"memory of megabytes written as a number", "memory: {size: 512}\ndisks: [{name: root, image: a}]", "16Mi to 16Ti"},
			{"negative memory", "memory: {size: -1Gi}\ndisks: [{name: root, image: a}]", "16Mi to 16Ti"},
			{"a state that YAML reads as a boolean", ok + "state: on", "state"},
			{"an unknown state", ok + "state: Halted", "supported values"},
			{"an unknown pull policy", ok + "imagePullPolicy: Sometimes", "supported values"},
			{"an unknown restart policy", ok + "restartPolicy: Sometimes", "supported values"},
			{"a negative grace period", ok + "terminationGracePeriodSeconds: -1", "greater than or equal to 0"},
			{"no cores", ok + "cpu: {cores: 0}", "greater than or equal to 1"},
			{"too many vCPUs", ok + "cpu: {cores: 512, sockets: 2}", "at most 512"},
			{"a CPU model with markup", ok + "cpu: {model: \"<x/>\"}", "such as Skylake-Server"},
			{"a disk without image", "memory: {size: 1Gi}\ndisks: [{name: root}]", "give image, virtualMachineImage, empty: {} or persistentVolumeClaim"},
			{"a disk with an empty image", "memory: {size: 1Gi}\ndisks: [{name: root, image: \"\"}]", "at least 1"},
			{"a disk without name", "memory: {size: 1Gi}\ndisks: [{image: a}]", "name"},
			{"a disk whose name is a path", "memory: {size: 1Gi}\ndisks: [{name: ../../etc, image: a}]", "digits and '-', such as root"},
			{"a disk whose name is longer than a serial number", "memory: {size: 1Gi}\ndisks: [{name: aaaaaaaaaaaaaaaaaaaaaaaa, image: a}]", "20"},
			{"two disks of one name", "memory: {size: 1Gi}\ndisks: [{name: a, image: a}, {name: a, image: b}]", "Duplicate"},
			{"a disk of no size", "memory: {size: 1Gi}\ndisks: [{name: a, image: a, size: \"0\"}]", "at least 1Mi"},
			{"thirteen disks", "memory: {size: 1Gi}\ndisks: [" + disks(13) + "]", "12 items"},
			{"a disk of two sources", disk + "image: a, empty: {}, size: 1Gi}]", "leave empty out, or what is beside it"},
			{"a disk of two images", disk + "image: a, virtualMachineImage: b}]", "give image or virtualMachineImage, and not both"},
			{"a shared claim with an image to be resolved", claim + "virtualMachineImage: b, access: Shared}]", "is seeded by nobody"},
			{"a claim that is empty besides", claim + "empty: {}, size: 1Gi}]", "leave empty out, or what is beside it"},
			{"an empty disk of no size", disk + "empty: {}}]", "needs a size"},
			{"a claim of no name", disk + "persistentVolumeClaim: {}}]", "give claimName"},
			{"a claim of two names", disk + "persistentVolumeClaim: {claimName: a, templateName: t}}]\n" + templates, "and not both"},
			{"a claim whose name is a path", disk + "persistentVolumeClaim: {claimName: ../a}}]", "must be that of a PersistentVolumeClaim"},
			{"a template that is missing", disk + "persistentVolumeClaim: {templateName: u}}]\n" + templates, "must be the metadata.name of one of volumeClaimTemplates"},
			{"a template where there are none", disk + "persistentVolumeClaim: {templateName: t}}]", "must be the metadata.name of one of volumeClaimTemplates"},
			{"an ephemeral claim", claim + "ephemeral: true}]", "leave ephemeral out"},
			{"a shared image", disk + "image: a, access: Shared}]", "for claims"},
			{"an empty disk that is only read", disk + "empty: {}, size: 1Gi, access: ReadOnly}]", "for claims"},
			{"a seed of what is only read", claim + "image: a, access: ReadOnly}]", "is seeded by nobody"},
			{"a seed of what is shared", claim + "image: a, access: Shared}]", "is seeded by nobody"},
			{"an access that is none", claim + "access: ReadWriteOnce}]", "supported values"},
			{"a claim twice", claim + "}, {name: b, persistentVolumeClaim: {claimName: a}}]", "two disks have the same claim"},
			{"a template twice", disk + "persistentVolumeClaim: {templateName: t}}, {name: b, persistentVolumeClaim: {templateName: t}}]\n" + templates, "two disks have the same claim"},
			{"two templates of a name", ok + "volumeClaimTemplates: [{metadata: {name: t}, spec: {}}, {metadata: {name: t}, spec: {}}]", "need different metadata.name"},
			{"nine templates", ok + "volumeClaimTemplates: [" + strings.Repeat("{metadata: {name: t}, spec: {}}, ", 8) + "{metadata: {name: u}, spec: {}}]", "at most 8 items"},
			{"a template whose name is none of a claim", ok + "volumeClaimTemplates: [{metadata: {name: A_b}, spec: {}}]", "such as data"},
			{"a template with our label", ok + "volumeClaimTemplates: [{metadata: {name: t, labels: {vm.berth.dev/name: x}}, spec: {}}]", "another prefix"},
			{"a template with a typo", ok + "volumeClaimTemplates: [{metadata: {name: t}, spec: {accessMode: [ReadWriteOnce]}}]", "unknown field"},
			{"a retention that is none", ok + "volumeClaimRetention: Keep", "supported values"},
			{"a type that is none", disk + "image: a, type: Floppy}]", "supported values"},
			{"a disk of no source whose type is given", disk + "type: Disk}]", "or type: CDROM for an empty drive"},
			{"an empty disk as CD-ROM", cdrom + "empty: {}, size: 1Gi}]", "a CD-ROM has an image or is empty"},
			{"a claim as CD-ROM", cdrom + "persistentVolumeClaim: {claimName: a}}]", "a CD-ROM has an image or is empty"},
			{"a CD-ROM with a size", cdrom + "image: a, size: 1Gi}]", "size, ephemeral, access, cache, ioThread and limits out"},
			{"a CD-ROM that is fresh at every start", cdrom + "image: a, ephemeral: true}]", "size, ephemeral, access, cache, ioThread and limits out"},
			{"a CD-ROM with an access", cdrom + "image: a, access: ReadWrite}]", "size, ephemeral, access, cache, ioThread and limits out"},
			{"a CD-ROM with a cache", cdrom + "image: a, cache: None}]", "cache, ioThread and limits out"},
			{"a CD-ROM with a thread", cdrom + "bus: SCSI, ioThread: true}]", "cache, ioThread and limits out"},
			{"a CD-ROM with limits", cdrom + "image: a, limits: {iops: 5}}]", "cache, ioThread and limits out"},
			{"a CD-ROM on virtio", cdrom + "bus: Virtio}]", "a CD-ROM is on SATA or SCSI"},
			{"a bus that is none", disk + "image: a, bus: IDE}]", "supported values"},
			{"a cache that is none", disk + "image: a, cache: Unsafe}]", "supported values"},
			{"a thread on SATA", disk + "image: a, bus: SATA, ioThread: true}]", "leave ioThread out, or set bus to Virtio or SCSI"},
			{"seven disks on SATA, with CD-ROMs", sata(4) + ", {name: s, type: CDROM}, {name: t, type: CDROM, bus: SATA}, {name: u, type: CDROM, image: a}]", "at most 6 disks are on SATA"},
			{"a serial number with a space", disk + "image: a, serial: \"A B\"}]", "such as WD-1234"},
			{"a serial number of no length", disk + "image: a, serial: \"\"}]", "such as WD-1234"},
			{"a serial number that is too long", disk + "image: a, serial: " + strings.Repeat("A", 21) + "}]", "may not be more than 20"},
			{"a serial number twice", disk + "image: a, serial: S}, {name: b, image: a, serial: S}]", "two disks have the same serial number"},
			{"a serial number that is another's name", disk + "image: a, serial: b}, {name: b, image: a}]", "two disks have the same serial number"},
			{"limits of nothing", disk + "image: a, limits: {}}]", "limits limit nothing"},
			{"a burst alone", disk + "image: a, limits: {burst: {iops: 5}}}]", "limits limit nothing"},
			{"a burst of nothing", disk + "image: a, limits: {iops: 5, burst: {seconds: 5}}}]", "burst allows nothing"},
			{"a burst of no seconds", disk + "image: a, limits: {iops: 5, burst: {iops: 6, seconds: 0}}}]", "greater than or equal to 1"},
			{"a burst of more than an hour", disk + "image: a, limits: {iops: 5, burst: {iops: 6, seconds: 3601}}}]", "less than or equal to 3600"},
			{"a burst of requests without their limit", disk + "image: a, limits: {bytesPerSecond: 1Mi, burst: {iops: 5}}}]", "burst.iops must be more than the iops"},
			{"a burst of as many requests", disk + "image: a, limits: {iops: 5, burst: {iops: 5}}}]", "burst.iops must be more than the iops"},
			{"a burst of bytes without their limit", disk + "image: a, limits: {iops: 5, burst: {bytesPerSecond: 1Mi}}}]", "burst.bytesPerSecond must be more"},
			{"a burst of as many bytes", disk + "image: a, limits: {bytesPerSecond: 1Mi, burst: {bytesPerSecond: 1024Ki}}}]", "burst.bytesPerSecond must be more"},
			{"no requests", disk + "image: a, limits: {iops: 0}}]", "greater than or equal to 1"},
			{"more requests than there are", disk + "image: a, limits: {iops: 1000000001}}]", "less than or equal to 1000000000"},
			{"hardly any bytes", disk + "image: a, limits: {bytesPerSecond: 65535}}]", "from 64Ki to 256Gi"},
			{"more bytes than there are", disk + "image: a, limits: {bytesPerSecond: 257Gi}}]", "from 64Ki to 256Gi"},
			{"a burst of more bytes than there are", disk + "image: a, limits: {bytesPerSecond: 1Mi, burst: {bytesPerSecond: 257Gi}}}]", "at most 256Gi"},
			{"bytes that are no quantity", disk + "image: a, limits: {bytesPerSecond: fast}}]", "bytesPerSecond"},
			{"the removal of a disk that there is", ok + "removeDisks: [old, root]", "removeDisks names a disk that the guest has"},
			{"a disk removed twice", ok + "removeDisks: [old, old]", "Duplicate"},
			{"the removal of a path", ok + "removeDisks: [../root]", "removeDisks are names of disks, such as old"},
			{"33 removals", ok + "removeDisks: [" + strings.TrimSuffix(strings.Repeat("a, ", 33), ", ") + "]", "at most 32 items"},
			{"two networks", ok + "networks: [{name: a, pod: {}}, {name: b, pod: {}}]", "at most 1 item"},
			{"a network of no kind", ok + "networks: [{name: a}]", "pod"},
			{"a kernel path that climbs", "memory: {size: 1Gi}\nkernel: {image: a, kernelPath: /boot/../etc/shadow}", ". or .."},
			{"a kernel path that is relative", "memory: {size: 1Gi}\nkernel: {image: a, kernelPath: boot/vmlinuz}", "absolute path of a file"},
			{"a command line of two lines", "memory: {size: 1Gi}\nkernel: {image: a, commandLine: \"a\\nb\"}", "must be one line"},
			{"user data twice", ok + "cloudInit: {userData: a, userDataSecretRef: {name: b}}", "not both"},
			{"network data twice", ok + "cloudInit: {networkData: a, networkDataSecretRef: {name: b}}", "not both"},
			{"network data that is the user data", ok + "cloudInit: {userDataSecretRef: {name: a}, networkDataSecretRef: {name: a}}", "name the other key, such as networkdata"},
			{"Ignition twice", ok + "ignition: {config: a, secretRef: {name: b}}", "give config or secretRef"},
			{"Ignition without a configuration", ok + "ignition: {}", "give config or secretRef"},
			{"Ignition beside cloudInit", ok + "ignition: {config: a}\ncloudInit: {userData: a}", "passwd.users"},
			{"Ignition beside ssh keys", ok + "ignition: {config: a}\nsshAuthorizedKeys: [ssh-ed25519 AAAA]", "passwd.users"},
			{"more Ignition than fits", ok + "ignition: {config: " + strings.Repeat("a", 65537) + "}", "65536"},
			{"empty cloudInit", ok + "cloudInit: {}", "leave cloudInit out"},
			{"a private key where a public one belongs", ok + "sshAuthorizedKeys: [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]", "no private key"},
			{"labels of ours", ok + "berth: {labels: {vm.berth.dev/name: x}}", "another prefix"},
			{"guest tools that nobody makes", ok + "guestTools: Always", "supported values"},
			{"a display of another kind", ok + "display: {type: QXL}", "supported values"},
			{"an exec probe without a command", ok + "readinessProbe: {exec: {}}", "exec.command is empty"},
			{"one with an empty command", ok + "livenessProbe: {exec: {command: []}}", "exec.command is empty"},
			{"one of 257 words", ok + "startupProbe: {exec: {command: [" + strings.Repeat("a, ", 256) + "a]}}", "at most 256 items"},
			{"one that is a byte too long", ok + "startupProbe: {exec: {command: [" + strings.Repeat("ä", 16348) + ", abc]}}", "longer than 32700 bytes"},
			{"a time to live with the default restart policy", ok + "ttlSecondsAfterFinished: 60", "a guest that is always restarted never finishes: set restartPolicy to OnFailure or Never"},
			{"a time to live with Always", ok + "restartPolicy: Always\nttlSecondsAfterFinished: 0", "a guest that is always restarted never finishes: set restartPolicy to OnFailure or Never"},
			{"a negative time to live", ok + "restartPolicy: Never\nttlSecondsAfterFinished: -1", "greater than or equal to 0"},
			{"a time to live of more than a year", ok + "restartPolicy: Never\nttlSecondsAfterFinished: 31536001", "less than or equal to 31536000"},
			{"one of no whole seconds", ok + "restartPolicy: Never\nttlSecondsAfterFinished: 1m", "integer"},
			{"a probe of a named port", ok + "livenessProbe: {tcpSocket: {port: http}}", "must be a number"},
			{"a paused guest that must answer", ok + "state: Paused\nlivenessProbe: {tcpSocket: {port: 80}}", "remove the probe"},
			{"a pull secret twice", ok + "imagePullSecrets: [{name: a}, {name: a}]", "Duplicate"},
			{"a Secret whose name is a path", ok + "cloudInit: {userDataSecretRef: {name: ../x}}", "must be that of a Secret"},
			{"a disk of an image without a name", "memory: {size: 1Gi}\ndisks: [{name: root, image: \"debian:12#disk=\"}]", "#disk=NAME"},
			{"a disk of an image whose name is a path", "memory: {size: 1Gi}\ndisks: [{name: root, image: \"debian:12#disk=../a\"}]", "#disk=NAME"},
			{"a disk of a kernel's image", "memory: {size: 1Gi}\nkernel: {image: \"debian:12#disk=a\"}", "no image reference"},
			{"an image that is a file", "memory: {size: 1Gi}\ndisks: [{name: root, image: \"file:///etc/shadow\"}]", "https://host/file"},
			{"an image with a scheme", "memory: {size: 1Gi}\ndisks: [{name: root, image: \"docker://debian:12\"}]", "https://host/file"},
			{"an image of two lines", "memory: {size: 1Gi}\nkernel: {image: \"debian\\nx\"}", "registry/repository:tag"},
			{"an image with a space", "memory: {size: 1Gi}\nkernel: {image: \"debian:12 \"}", "or spaces"},
			{"an image in upper case", "memory: {size: 1Gi}\nkernel: {image: Debian:12}", "in lower case"},
			{"a grace period of a startup probe", ok + "startupProbe: {tcpSocket: {port: 80}, terminationGracePeriodSeconds: 5}", "set that of the spec"},
			{"a grace period of a readiness probe", ok + "readinessProbe: {tcpSocket: {port: 80}, terminationGracePeriodSeconds: 5}", "leave its terminationGracePeriodSeconds out"},
			{"an HTTP probe of another host", ok + "readinessProbe: {httpGet: {port: 80, host: 10.0.0.1}}", "as the header Host"},
			{"a TCP probe of another host", ok + "livenessProbe: {tcpSocket: {port: 80, host: 10.0.0.1}}", "tcpSocket.host leads away"},
			{"more user data than 48Ki", ok + "cloudInit: {userData: " + strings.Repeat("ä", 24577) + "}", "into a Secret"},
			{"more keys than 16Ki", ok + "sshAuthorizedKeys: [" + strings.TrimSuffix(strings.Repeat("ssh-rsa "+strings.Repeat("A", 8000)+", ", 3), ", ") + "]", "into user data in a Secret"},
			{"a field that does not exist", ok + "firmware: UEFI", "unknown field"},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				err := c.Create(t.Context(), object(t, "vm", tt.spec), client.FieldValidation(metav1.FieldValidationStrict), client.DryRunAll)
				if err == nil {
					t.Fatal("it was accepted")
				}
				if !strings.Contains(err.Error(), tt.says) {
					t.Errorf("the message does not say %q: %v", tt.says, err)
				}
			})
		}
		for _, name := range []string{"a.b", strings.Repeat("a", 64)} {
			err := c.Create(t.Context(), object(t, name, ok), client.DryRunAll)
			if err == nil || !strings.Contains(err.Error(), "must be a DNS label") || strings.Contains(err.Error(), "<nil>") {
				t.Errorf("the name %q: %v", name, err)
			}
		}
		for _, name := range []string{"1-", "A"} {
			if err := c.Create(t.Context(), object(t, name, ok), client.DryRunAll); err == nil {
				t.Errorf("the name %q was accepted", name)
			}
		}
	})

	t.Run("knows which images nodes can be asked for", func(t *testing.T) {
		for _, tt := range []struct{ name, image, says string }{
			{strings.Repeat("a", 50), "quay.io/containerdisks/debian:12", ""},
			{"a.b", "https://example.com/a.qcow2#sha256=" + strings.Repeat("0", 64), ""},
			{strings.Repeat("a", 51), "debian", "more than 50 characters"},
			{"a", "Debian", "no image reference"},
			{"a", "", "spec.image"},
		} {
			image := &v1alpha1.VirtualMachineImage{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: tt.name}}
			image.Spec.Image = tt.image
			err := c.Create(t.Context(), image, client.DryRunAll)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("%s, %q: %v", tt.name, tt.image, err)
			}
		}
	})

	t.Run("accepts every source of a disk", func(t *testing.T) {
		for _, spec := range []string{
			disk + "virtualMachineImage: a, size: 1Gi}, {name: b, type: CDROM, virtualMachineImage: a}]",
			claim + "virtualMachineImage: a}]",
			disk + "image: a}, {name: b, empty: {}, size: 1Gi, ephemeral: true}, {name: c, empty: {}, size: 1Gi, access: ReadWrite}]",
			claim + "image: a, size: 1Gi, access: ReadWrite}, {name: b, persistentVolumeClaim: {claimName: b}, access: Shared, ephemeral: false}]",
			claim + "access: ReadOnly}, {name: b, persistentVolumeClaim: {templateName: t}}]\nvolumeClaimRetention: Delete\n" + templates,
		} {
			if err := c.Create(t.Context(), object(t, "vm", spec), client.FieldValidation(metav1.FieldValidationStrict), client.DryRunAll); err != nil {
				t.Errorf("%s: %v", spec, err)
			}
		}
	})

	t.Run("accepts disks of every kind", func(t *testing.T) {
		for _, spec := range []string{
			cdrom + "image: a}, {name: b, type: CDROM}, {name: c, type: CDROM, bus: SCSI, serial: Z.9_-, ephemeral: false, ioThread: false}]",
			sata(5) + ", {name: s, type: CDROM}, {name: t, type: CDROM, bus: SCSI}, {name: u, image: a, bus: Virtio}]",
			disk + "type: Disk, image: a, bus: SCSI, ioThread: true, cache: Writethrough, serial: b}, {name: b, image: a, serial: a, cache: None}]",
			disk + "image: a, limits: {iops: 1, bytesPerSecond: 64Ki, burst: {iops: 1000000000, bytesPerSecond: 256Gi, seconds: 3600}}}]",
			disk + "image: a, limits: {bytesPerSecond: 65536}}, {name: b, empty: {}, size: 1Gi, limits: {iops: 5, burst: {iops: 6}}}]\nremoveDisks: [old, older]",
			claim + "limits: {bytesPerSecond: 50M, burst: {bytesPerSecond: 51M}}, cache: Writeback, bus: SATA}]",
			"memory: {size: 1Gi}\nkernel: {image: a}\nremoveDisks: [root]",
			largest(),
		} {
			if err := c.Create(t.Context(), object(t, "vm", spec), client.FieldValidation(metav1.FieldValidationStrict), client.DryRunAll); err != nil {
				t.Errorf("%s: %v", spec, err)
			}
		}
	})

	t.Run("accepts whatever is an image", func(t *testing.T) {
		for _, image := range []string{
			"a", "debian:12", "quay.io/containerdisks/debian:12", "localhost:5000/a/b__c/d-e.f:v1.0_x", "[fd00::1]:5000/a", "Registry.Example/a",
			"a@sha256:" + strings.Repeat("0", 64), "r.example/a:1@sha256:" + strings.Repeat("f", 64), "x/" + strings.Repeat("a/", 400) + "b",
		} {
			spec := "memory: {size: 1Gi}\ndisks: [{name: root, image: \"" + image + "\"}]\nkernel: {image: \"" + image + "\"}"
			if err := c.Create(t.Context(), object(t, "vm", spec), client.DryRunAll); err != nil {
				t.Errorf("%s: %v", image, err)
			}
		}
	})

	t.Run("accepts one of an image's disks", func(t *testing.T) {
		spec := "memory: {size: 1Gi}\ndisks: [{name: root, image: \"quay.io/a/b:1#disk=root-1.x\"}]"
		if err := c.Create(t.Context(), object(t, "vm", spec), client.DryRunAll); err != nil {
			t.Error(err)
		}
	})

	t.Run("accepts the longest probe and the longest and shortest time to live", func(t *testing.T) {
		for _, spec := range []string{
			"readinessProbe: {exec: {command: [" + strings.Repeat("ä", 16348) + ", ab]}}\nlivenessProbe: {exec: {command: [\"true\"]}}",
			"startupProbe: {exec: {command: [" + strings.Repeat("a, ", 255) + "a]}}",
			"restartPolicy: Never\nttlSecondsAfterFinished: 31536000",
			"restartPolicy: OnFailure\nttlSecondsAfterFinished: 0",
		} {
			if err := c.Create(t.Context(), object(t, "vm", ok+spec), client.DryRunAll); err != nil {
				t.Errorf("%.80s: %v", spec, err)
			}
		}
	})

	t.Run("leaves alone what is stored, and was allowed once", func(t *testing.T) {
		crd := &unstructured.Unstructured{}
		crd.SetAPIVersion("apiextensions.k8s.io/v1")
		crd.SetKind("CustomResourceDefinition")
		if err := c.Get(t.Context(), client.ObjectKey{Name: "virtualmachines.berth.dev"}, crd); err != nil {
			t.Fatal(err)
		}
		today := crd.DeepCopy()
		withoutRules(crd.Object)
		if err := c.Update(t.Context(), crd); err != nil {
			t.Fatal(err)
		}
		spec := ok + "startupProbe: {tcpSocket: {port: 80, host: 10.0.0.1}, terminationGracePeriodSeconds: 5}\n" +
			"cloudInit: {userData: " + strings.Repeat("x", 200000) + "}\nkernel: {image: \"Debian \"}\n" +
			"sshAuthorizedKeys: [" + strings.TrimSuffix(strings.Repeat("ssh-rsa "+strings.Repeat("A", 8000)+", ", 3), ", ") + "]"
		var vm *unstructured.Unstructured
		env.Eventually(t, "an older CRD", func() bool {
			vm = object(t, "older", spec)
			return c.Create(t.Context(), vm) == nil
		})
		today.SetResourceVersion("")
		today.SetManagedFields(nil)
		if err := c.Patch(t.Context(), today, client.Apply, client.FieldOwner("upgrade"), client.ForceOwnership); err != nil { //nolint:staticcheck // a whole object
			t.Fatal(err)
		}
		env.Eventually(t, "the present CRD", func() bool {
			return c.Create(t.Context(), object(t, "newer", "memory: {size: 1Gi}\nkernel: {image: \"Debian \"}"), client.DryRunAll) != nil
		})
		for _, patch := range []string{`{"spec":{"state":"Stopped"}}`, `{"metadata":{"finalizers":["berth.dev/disks"]}}`, `{"spec":{"memory":{"size":"2Gi"}}}`} {
			if err := c.Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
				t.Errorf("%s: %v", patch, err)
			}
		}
		if err := c.Status().Patch(t.Context(), vm.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"status":{"phase":"Running"}}`))); err != nil {
			t.Errorf("its status: %v", err)
		}
	})

	t.Run("fills in defaults", func(t *testing.T) {
		if err := c.Create(t.Context(), object(t, "plain", ok)); err != nil {
			t.Fatal(err)
		}
		var vm v1alpha1.VirtualMachine
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "plain"}, &vm); err != nil {
			t.Fatal(err)
		}
		s := vm.Spec
		if s.State != v1alpha1.StateRunning || s.RestartPolicy != v1alpha1.RestartAlways || *s.TerminationGracePeriodSeconds != 60 ||
			s.CPU != (v1alpha1.CPU{Cores: 1, Sockets: 1, Threads: 1, Model: "host-model"}) || len(s.Networks) != 1 || s.Networks[0].Name != "default" ||
			s.GuestTools != v1alpha1.GuestToolsOffered || s.Display != nil {
			t.Errorf("defaults are %+v", s)
		}
		if vm.Status.ObservedGeneration != -1 { // else kstatus takes for done what nobody has looked at yet
			t.Errorf("a VirtualMachine that is new has been observed: %+v", vm.Status)
		}
	})
}

// withoutRules takes the rules in CEL out of a schema.
func withoutRules(node any) {
	switch node := node.(type) {
	case map[string]any:
		delete(node, "x-kubernetes-validations")
		for _, item := range node {
			withoutRules(item)
		}
	case []any:
		for _, item := range node {
			withoutRules(item)
		}
	}
}

// largest is a spec with as many and as long disks as there may be: the rules about all of them must not cost too much.
func largest() string {
	var list, removed []string
	for i := range 12 {
		name := strings.Repeat("d", 19) + string(rune('a'+i))
		list = append(list, "{name: "+name+", image: a, serial: "+strings.ToUpper(name)+", limits: {iops: 5, bytesPerSecond: 1Mi, burst: {iops: 6, bytesPerSecond: 2Mi}}}")
	}
	for i := range 32 {
		removed = append(removed, strings.Repeat("r", 18)+strconv.Itoa(10+i))
	}
	return "memory: {size: 1Gi}\ndisks: [" + strings.Join(list, ", ") + "]\nremoveDisks: [" + strings.Join(removed, ", ") + "]"
}

// sata begins a spec of so many disks on SATA.
func sata(n int) string {
	return "memory: {size: 1Gi}\ndisks: [" + strings.ReplaceAll(disks(n), "image: a", "image: a, bus: SATA")
}

func disks(n int) string {
	var list []string
	for i := range n {
		list = append(list, "{name: d"+string(rune('a'+i))+", image: a}")
	}
	return strings.Join(list, ", ")
}
