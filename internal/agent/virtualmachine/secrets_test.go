package virtualmachine

import (
	"errors"
	"io/fs"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
)

func TestPullSecretsNeedAShim(t *testing.T) {
	r := &Reconciler{}
	if _, err := r.keys(nil, nil)(); err != nil {
		t.Errorf("without pull secrets: %v", err)
	}
	if _, err := r.keys(nil, []types.NamespacedName{{Namespace: "default", Name: "registry"}})(); !errors.Is(err, shimproto.ErrAbsent) {
		t.Errorf("with pull secrets and no shim: %v", err)
	}
}

func TestPullSecretsAreReadFromTheBerth(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		err     error
		reason  v1alpha1.Reason
	}{
		"a Secret that kubelet mounted":         {content: `{"auths":{"quay.io":{"auth":"YTpi"}}}`},
		"one that does not exist":               {err: fs.ErrNotExist, reason: v1alpha1.ReasonSecretMissing},
		"one that cannot be read for a moment":  {err: errors.New("input/output error"), reason: v1alpha1.ReasonInternalError},
		"one that holds something else than it": {content: `{`, reason: v1alpha1.ReasonImageUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Reconciler{Options: Options{Host: Host{ReadFile: func(pid int, path string, _ int64) ([]byte, error) {
				if pid != 42 || path != "/run/berth/pull/registry/.dockerconfigjson" {
					t.Errorf("read %s of process %d", path, pid)
				}
				return []byte(tt.content), tt.err
			}}}}
			_, err := r.keys(&fakeSession{pid: 42}, []types.NamespacedName{{Namespace: "default", Name: "registry"}})()
			if (err == nil) != (tt.reason == "") || err != nil && fault.ReasonOf(err) != tt.reason {
				t.Errorf("%v, want reason %q", err, tt.reason)
			}
		})
	}
}
