package virtualmachine

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/volume"
)

// maxSecret bounds what is read of a Secret, in bytes: the API server takes no larger one.
const maxSecret = 1 << 20

// keys reads pull secrets from the berth that mounts them, once, when they are needed.
func (r *Reconciler) keys(in Container, secrets []types.NamespacedName) Keys {
	return sync.OnceValues(func() (keys image.Keychain, err error) {
		if len(secrets) > 0 && in == nil {
			return keys, shimproto.ErrAbsent
		}
		for _, s := range secrets {
			config, err := r.Host.ReadFile(in.PID(), path.Join(berth.PullSecretsDir, s.Name, berth.PullSecretFile), maxSecret)
			if errors.Is(err, fs.ErrNotExist) {
				return keys, fault.NewUser(v1alpha1.ReasonSecretMissing, fmt.Errorf(
					"Secret %s does not exist or has no key .dockerconfigjson: create it with kubectl create secret docker-registry", s))
			}
			if err != nil {
				return keys, fmt.Errorf("reading pull secret %s: %w", s.Name, err)
			}
			if err := keys.Add(config); err != nil {
				return keys, fmt.Errorf("pull secret %s: %w", s.Name, err)
			}
		}
		return keys, nil
	})
}

// writeSeed writes the first-boot data into the file that QEMU has open. A
// Secret can be read only now that the container has it mounted.
func (r *Reconciler) writeSeed(m *machine.Machine, in Container) error {
	s := seed.Seed{InstanceID: string(m.UID), Hostname: m.Name, SSHAuthorizedKeys: m.Seed.SSHAuthorizedKeys, StartTools: m.Tools}
	var err error
	if s.UserData, err = r.text(m, in, m.Seed.UserData, m.Seed.UserDataSecret, berth.UserDataPath); err != nil {
		return err
	}
	if s.NetworkConfig, err = r.text(m, in, m.Seed.NetworkData, m.Seed.NetworkDataSecret, berth.NetworkPath); err != nil {
		return err
	}
	image, err := seed.Build(s)
	if err != nil {
		return err
	}
	return r.Host.Store.WriteSeed(string(m.UID), image)
}

// text is what the spec says inline, or in a Secret that the berth has mounted as file; nil if it says neither.
func (r *Reconciler) text(m *machine.Machine, in Container, inline *string, ref *v1alpha1.SecretKeyReference, file string) ([]byte, error) {
	switch {
	case inline != nil:
		return []byte(*inline), nil
	case ref == nil:
		return nil, nil
	case in == nil:
		return nil, shimproto.ErrAbsent
	}
	data, err := r.Host.ReadFile(in.PID(), file, maxSecret)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.NewUser(v1alpha1.ReasonSecretMissing, fmt.Errorf(
			"Secret %s/%s does not exist or has no key %s: create it; kubelet shows it to the guest within two minutes", m.Namespace, ref.Name, ref.Key))
	case errors.Is(err, volume.ErrTooLarge):
		return nil, fault.NewUser(v1alpha1.ReasonSeedTooLarge, fmt.Errorf("Secret %s/%s: %w", m.Namespace, ref.Name, err))
	case err != nil:
		return nil, fmt.Errorf("reading Secret %s/%s: %w", m.Namespace, ref.Name, err)
	}
	return data, nil
}
