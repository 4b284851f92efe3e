package seed

import (
	"encoding/json"
	"fmt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Size is what every seed has, in bytes: QEMU opens the file before it has its contents.
const Size = 4 << 20

// Seed is the first-boot data of a guest.
type Seed struct {
	InstanceID    string // tells cloud-init when this is another guest, and its first boot: the VirtualMachine's UID
	Hostname      string // the guest's name for itself
	UserData      []byte // handed over as it is, whatever its format
	NetworkConfig []byte // cloud-init's network configuration; without it the guest asks by DHCP
	// SSHAuthorizedKeys are public keys. They go into the metadata, from which cloud-init's ssh module gives them to the
	// default user beside those in UserData. Without UserData they are in a cloud-config as well, for the many smaller
	// readers of NoCloud that know no keys in metadata.
	SSHAuthorizedKeys []string
	StartTools        bool // has cloud-init start the guest program at each boot, whatever UserData says
}

// Build returns the Size bytes of an ISO 9660 image labelled cidata with the files meta-data, user-data and, if there
// are any, network-config and vendor-data. Errors: SeedTooLarge.
func Build(s Seed) ([]byte, error) {
	// JSON is YAML, and cannot be broken out of by a key's comment. It takes any string.
	metadata, _ := json.Marshal(struct {
		InstanceID string   `json:"instance-id"`
		Hostname   string   `json:"local-hostname"`
		Keys       []string `json:"public-keys,omitempty"`
	}{s.InstanceID, s.Hostname, s.SSHAuthorizedKeys})
	userData := s.UserData
	if len(userData) == 0 {
		config, _ := json.Marshal(struct {
			Keys []string `json:"ssh_authorized_keys,omitempty"`
		}{s.SSHAuthorizedKeys})
		userData = fmt.Appendf(nil, "#cloud-config\n%s\n", config) // NoCloud ignores a seed without user-data
	}
	files := []file{{"meta-data", append(metadata, '\n')}, {"user-data", userData}}
	if len(s.NetworkConfig) > 0 {
		files = []file{files[0], {"network-config", s.NetworkConfig}, files[1]}
	}
	if s.StartTools {
		files = append(files, file{"vendor-data", []byte(vendorData)})
	}
	b, needed := image("cidata", files, Size)
	if needed > Size {
		return nil, fault.NewUser(v1alpha1.ReasonSeedTooLarge,
			fmt.Errorf("the cloud-init data needs %d bytes, the most is %d: shorten it, or have the guest fetch it", needed, Size))
	}
	return b, nil
}
