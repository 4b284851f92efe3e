package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/agent/shims"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/volume"
)

// maxPullSecret bounds a pull secret, in bytes: that of any Secret.
const maxPullSecret = 1 << 20

// keychain reads the guest's pull secrets from its berth, once, when they are needed.
func keychain(g *guest) pulls.Keys {
	return sync.OnceValues(func() (keys image.Keychain, err error) {
		if len(g.VM.Spec.ImagePullSecrets) > 0 && g.link == nil {
			return keys, shims.ErrAbsent
		}
		for _, s := range g.VM.Spec.ImagePullSecrets {
			config, err := volume.ReadFile(g.link.PID(), path.Join(berth.PullSecretsDir, s.Name, berth.PullSecretFile), maxPullSecret)
			if errors.Is(err, fs.ErrNotExist) {
				return keys, fault.ByUser(v1alpha1.ReasonSecretMissing, fmt.Errorf(
					"Secret %s/%s does not exist or has no key .dockerconfigjson: create it with kubectl create secret docker-registry", g.VM.Namespace, s.Name))
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
