package berth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// recordVersion is the version of the records that this program writes. It goes up only when an older program would
// misread a newer record: not when the spec gets a field.
const recordVersion = 1

// hashPrefix begins what stands in a record for a string that is long or private.
const hashPrefix = "sha256:"

// maxRecorded is the longest string, in bytes, that a record holds as it is.
const maxRecorded = 128

// record is the spec that a berth, or the guest in it, was made from.
type record struct {
	Version int                         `json:"recordVersion"`
	Spec    v1alpha1.VirtualMachineSpec `json:"spec"`
}

// Record writes down the spec that a berth, or a guest, is made from. The berth carries it as an annotation, and the
// guest's domain in its metadata. It is JSON in printable ASCII, and holds no user data and nothing that acts on a guest
// as it is.
func Record(spec *v1alpha1.VirtualMachineSpec) (string, error) {
	tree, err := recorded(spec)
	if err != nil {
		return "", err
	}
	raw, err := json.Marshal(map[string]any{"recordVersion": recordVersion, "spec": tree})
	return ascii(raw), fault.Doing(err, "encoding record")
}

// ascii writes JSON without what XML or a terminal may not take.
func ascii(raw []byte) string {
	var b strings.Builder
	for _, r := range string(raw) {
		if r < 0x7f {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// Changes lists, sorted by path, how a spec differs from the one that a guest was started from, as its record tells, but for
// what is compared with the guest as it runs. Both are read through today's defaults, so that a field with a default that
// came after the record is no change. A record of a newer version tells nothing, so nothing has changed; one that is none at
// all fits no spec.
func Changes(recordText string, spec *v1alpha1.VirtualMachineSpec) ([]v1alpha1.PendingChange, error) {
	changes, err := differences(recordText, spec)
	return slices.DeleteFunc(changes, func(c v1alpha1.PendingChange) bool {
		return strings.HasPrefix(c.Path, "disks[") && strings.HasSuffix(c.Path, "].size")
	}), err
}

// Outdated lists what a berth that has that record cannot take: before a guest starts once more there is to be a new one. The
// sizes of disks are among it, which a berth requests of its node.
func Outdated(recordText string, spec *v1alpha1.VirtualMachineSpec) ([]v1alpha1.PendingChange, error) {
	changes, err := differences(recordText, spec)
	return slices.DeleteFunc(changes, func(c v1alpha1.PendingChange) bool { return c.Effect != v1alpha1.EffectNewBerth }), err
}

func differences(recordText string, spec *v1alpha1.VirtualMachineSpec) ([]v1alpha1.PendingChange, error) {
	now, err := Record(spec)
	if err != nil || now == recordText {
		return nil, err
	}
	var then record
	isRecord := json.Unmarshal([]byte(recordText), &then) == nil
	switch {
	case then.Version > recordVersion:
		return nil, nil
	case !isRecord || then.Version == 0:
		return []v1alpha1.PendingChange{{Path: "spec", From: "a record that cannot be read", Effect: v1alpha1.EffectNewBerth}}, nil
	}
	was, wasErr := leavesOf(&then.Spec)
	is, isErr := leavesOf(spec)
	if err := errors.Join(wasErr, isErr); err != nil {
		return nil, err
	}
	foldDisks(was, then.Spec.Disks, spec.Disks)
	foldDisks(is, spec.Disks, then.Spec.Disks)
	paths := maps.Clone(was)
	maps.Copy(paths, is)
	var changes []v1alpha1.PendingChange
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if from, to := was[path], is[path]; from != to && path != actsAtOnce {
			changes = append(changes, v1alpha1.PendingChange{Path: path, From: shown(from), To: shown(to), Effect: effectOf(path)})
		}
	}
	return changes, nil
}

// foldDisks makes a disk that others lack one change, and the boot order one only where it differs among those that both have.
func foldDisks(leaves map[string]string, disks, others []v1alpha1.Disk) {
	var both []string
	for _, d := range disks {
		if slices.ContainsFunc(others, func(o v1alpha1.Disk) bool { return o.Name == d.Name }) {
			both = append(both, d.Name)
			continue
		}
		path := "disks[" + d.Name + "]"
		maps.DeleteFunc(leaves, func(leaf, _ string) bool { return strings.HasPrefix(leaf, path) })
		leaves[path] = "attached"
	}
	leaves["disks"] = "[" + strings.Join(both, " ") + "]"
}

// RecordWithDisk is a record as if its guest had been started with the disk of that name as it is among these, which are in
// their order, and without it if it is not. The order of the others stays. It fails for a record of another version.
func RecordWithDisk(recordText, name string, among []v1alpha1.Disk) (string, error) {
	var then record
	if err := json.Unmarshal([]byte(recordText), &then); err != nil {
		return "", fmt.Errorf("reading record: %w", err)
	}
	if then.Version != recordVersion {
		return "", fmt.Errorf("the record has version %d, and only one of version %d can be changed", then.Version, recordVersion)
	}
	place := func(list []v1alpha1.Disk, name string) int {
		return slices.IndexFunc(list, func(d v1alpha1.Disk) bool { return d.Name == name })
	}
	disks := slices.DeleteFunc(then.Spec.Disks, func(had v1alpha1.Disk) bool { return had.Name == name })
	if i := place(among, name); i >= 0 {
		at := 0
		for _, before := range among[:i] {
			at = max(at, place(disks, before.Name)+1)
		}
		disks = slices.Insert(disks, at, among[i])
	}
	then.Spec.Disks = disks
	return Record(&then.Spec)
}

// clearUnrecorded takes out of a spec what acts at once and has no place in a record: of disks, what is compared with the
// guest as it runs, and shapes no berth. Their defaults, written or not, are the same.
func clearUnrecorded(s *v1alpha1.VirtualMachineSpec) {
	s.State, s.RestartedAt, s.TTLSecondsAfterFinished = "", "", nil
	s.VolumeClaimTemplates, s.VolumeClaimRetention = nil, ""
	s.RemoveDisks, s.ImagePullPolicy = nil, ""
	for i := range s.Disks {
		d := &s.Disks[i]
		bus := v1alpha1.BusVirtio
		if d.Type == v1alpha1.DiskTypeCDROM {
			d.Image, d.VirtualMachineImage, bus = "", "", v1alpha1.BusSATA
		}
		if d.PersistentVolumeClaim != nil {
			d.Size = nil
		}
		d.Limits = nil
		clearDefault(&d.Type, v1alpha1.DiskTypeDisk)
		clearDefault(&d.Bus, bus)
		clearDefault(&d.Serial, d.Name)
	}
}

func clearDefault[T comparable](field *T, value T) {
	if *field == value {
		*field = *new(T)
	}
}

// actsAtOnce is a field of records whose change is never pending.
const actsAtOnce = "terminationGracePeriodSeconds"

// inPlace are the fields that shape the guest and not its berth: a restart in place takes them.
var inPlace = []string{"kernel", "cloudInit.userData", "cloudInit.networkData", "ignition.config", "sshAuthorizedKeys", "guestTools"}

// inPlaceOfDisk are such fields of each disk.
var inPlaceOfDisk = []string{"bus", "cache", "ioThread", "serial"}

func effectOf(path string) v1alpha1.ChangeEffect {
	if rest, is := strings.CutPrefix(path, "disks["); is {
		_, field, _ := strings.Cut(rest, "].")
		if slices.Contains(inPlaceOfDisk, field) {
			return v1alpha1.EffectRestart
		}
	}
	for _, field := range inPlace {
		if rest, is := strings.CutPrefix(path, field); is && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return v1alpha1.EffectRestart
		}
	}
	return v1alpha1.EffectNewBerth
}

// shown is a value as people may see it: nothing that a record keeps as a hash.
func shown(value string) string {
	if strings.HasPrefix(value, hashPrefix) {
		return ""
	}
	return value
}

// recorded is the spec as a tree of JSON values, as a record holds it.
func recorded(spec *v1alpha1.VirtualMachineSpec) (any, error) {
	s := spec.DeepCopy()
	v1alpha1.Default(s)
	clearUnrecorded(s)
	HashTexts(s)
	tree, err := runtime.DefaultUnstructuredConverter.ToUnstructured(s)
	return shortened(tree), fault.Doing(err, "encoding spec")
}

// HashTexts replaces the private and the long texts of a spec by what a record has of them: a record of the spec stays the
// same, and a cache of many thousands stays small.
func HashTexts(s *v1alpha1.VirtualMachineSpec) {
	var private []**string
	if c := s.CloudInit; c != nil {
		private = append(private, &c.UserData, &c.NetworkData)
	}
	if s.Ignition != nil {
		private = append(private, &s.Ignition.Config)
	}
	for _, text := range private {
		if *text != nil {
			*text = new(hashed(**text))
		}
	}
	for i, key := range s.SSHAuthorizedKeys {
		if len(key) > maxRecorded {
			s.SSHAuthorizedKeys[i] = hashed(key)
		}
	}
}

// shortened replaces the long strings of a tree, in place.
func shortened(node any) any {
	switch node := node.(type) {
	case map[string]any:
		for key, value := range node {
			node[key] = shortened(value)
		}
	case []any:
		for i, value := range node {
			node[i] = shortened(value)
		}
	case string:
		if len(node) > maxRecorded {
			return hashed(node)
		}
	}
	return node
}

// hashed is what a record has of a string, and of what it has already.
func hashed(text string) string {
	if strings.HasPrefix(text, hashPrefix) && len(text) == len(hashPrefix)+2*sha256.Size {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	return hashPrefix + hex.EncodeToString(sum[:])
}

// leavesOf are the values of a spec by their paths, such as disks[root].size. Items of a list go by their name, or by
// their index if they have none; the order of names is the value of the list itself.
func leavesOf(spec *v1alpha1.VirtualMachineSpec) (map[string]string, error) {
	tree, err := recorded(spec)
	leaves := map[string]string{}
	flatten(leaves, "", tree)
	return leaves, err
}

func flatten(leaves map[string]string, path string, node any) {
	switch node := node.(type) {
	case nil: // as good as absent
	case map[string]any:
		for key, value := range node {
			flatten(leaves, join(path, key), value)
		}
		if len(node) == 0 {
			leaves[path] = "{}"
		}
	case []any:
		var names []string
		for i, item := range node {
			index := strconv.Itoa(i)
			if object, is := item.(map[string]any); is {
				if name, is := object["name"].(string); is {
					index = name
					names = append(names, name)
					delete(object, "name")
				}
			}
			flatten(leaves, path+"["+index+"]", item)
		}
		if len(names) == len(node) {
			leaves[path] = "[" + strings.Join(names, " ") + "]"
		}
	default:
		leaves[path] = fmt.Sprint(node)
	}
}

func join(path, key string) string {
	switch {
	case path == "":
		return key
	case strings.ContainsAny(key, "./[]"): // a label's
		return path + "[" + key + "]"
	default:
		return path + "." + key
	}
}
