package agent

import (
	"context"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
)

// collectEvery is how often images are looked through; their last use is known as exactly.
const collectEvery = 10 * time.Minute

// collectImages removes what no guest of the node has used for long, again and again until ctx ends.
func (a *Agent) collectImages(ctx context.Context) error {
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	for {
		a.collect()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// collect removes unused images once. Nothing waits for it.
func (a *Agent) collect() {
	log := ctrl.Log.WithName("host")
	removed, err := a.store.Collect(a.Images, a.now())
	if err != nil {
		log.Error(err, "Removing unused images")
	}
	for _, i := range removed {
		log.Info("Removed an image that nothing used", "image", i.Digest, "bytes", i.Allocated)
		a.meters.collected.Inc()
	}
	if len(removed) > 0 {
		a.host.Wake()
	}
}
