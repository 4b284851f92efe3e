package pulls

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	ctrl "sigs.k8s.io/controller-runtime"
)

// collectPeriod is how often unused images are removed; their last use is known as exactly.
const collectPeriod = 10 * time.Minute

// GarbageCollect removes images that nothing has used for long, again and again until ctx ends.
func (p *Puller) GarbageCollect(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(context.Context) { p.collect() }, collectPeriod)
	return nil
}

// collect removes unused images once. Nothing waits for it.
func (p *Puller) collect() {
	log := ctrl.Log.WithName("host")
	removed, err := p.Collect(p.Now())
	if err != nil {
		log.Error(err, "Removing unused images")
	}
	for _, i := range removed {
		log.Info("Removed unused image", "image", i.Digest, "bytes", i.Allocated)
		p.Metrics.Removals.Inc()
	}
	if len(removed) > 0 {
		p.Removed()
	}
}
