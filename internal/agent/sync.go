package agent

import (
	"context"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/kube"
)

// rounds bounds how often one sync looks again after its steps.
const rounds = 4

// sync brings one guest to what the API wants. Its only memory is the machine itself.
func (a *Agent) sync(ctx context.Context, uid types.UID) (time.Duration, error) {
	g, err := a.want(ctx, uid)
	if err != nil { // the API server cannot say; a guest that runs is cared for all the same
		ctrl.LoggerFrom(ctx).V(1).Info("Caring without the API", "cause", err.Error())
	}
	have := a.observe(ctx, g)
	var next plan.Next
	var failure error
	memory := a.hints.memory(uid)
	for range rounds {
		next, memory = plan.Decide(g.Want, have, memory, a.now())
		if len(next.Steps) == 0 {
			break
		}
		if failure = a.act(ctx, g, next.Steps); failure != nil {
			break
		}
		have = a.observe(ctx, g)
		if next.Wake > 0 { // these steps take their time
			break
		}
	}
	a.hints.remember(uid, memory)
	a.meters.states.saw(uid, g.state(&have))
	if err == nil && failure == nil && have.Unknown == nil && have.Domain == plan.DomainRunning && have.Shim != nil && have.Shim.Attached {
		a.hints.saw(uid, g.fromAfar, a.now())
	} else { // it waits for something, which might not be told
		a.hints.unseen(uid)
	}
	if g.VM == nil && err == nil && have.Unknown == nil && !have.Kept {
		a.hints.forget(uid)
		a.pulls.Forget(uid)
	}
	if failsStore(failure) || failsStore(have.Unknown) { // its host has to tell, too
		a.host.Wake()
	}
	// gofail: var beforeReport struct{}
	// crash()
	wake, reportErr := a.report(ctx, g, have, memory, failure)
	return kube.Sooner(wake, next.Wake), errors.Join(failure, reportErr, err)
}

// failsStore: the failure is the store's, which concerns disks and host alike.
func failsStore(err error) bool {
	reason := fault.ReasonOf(err)
	return err != nil && reason.StandsIn(v1alpha1.ConditionDisksReady) && reason.StandsIn(v1alpha1.InHost)
}
