package pulls

import (
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/store"
)

const (
	// verdictLife is how long it is known of a content that it can never be used: it is not downloaded again just to see.
	verdictLife = 6 * time.Hour
	// maxVerdicts bounds how many are known.
	maxVerdicts = 1024
)

// judged is a content from a source. Another source of the same digest has a verdict of its own: it has other names,
// which are nobody else's business.
type judged struct {
	source
	content store.Content
}

type verdict struct {
	err   error
	until time.Time
}

// verdict returns what is wrong with a content for good, nil if nothing is known.
func (p *Puller) verdict(s source, c store.Content) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.verdicts[judged{s, c}]; p.Now().Before(v.until) {
		return v.err
	}
	return nil
}

// remember keeps the verdict on a content whose every byte was there, if it is one.
func (p *Puller) remember(s source, c store.Content, err error) {
	switch fault.ReasonOf(err) {
	case v1alpha1.ReasonImageNotDisk, v1alpha1.ReasonImageUnsafe, v1alpha1.ReasonImageTooLarge:
	default:
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.Now()
	for old, v := range p.verdicts {
		if len(p.verdicts) >= maxVerdicts || !now.Before(v.until) {
			delete(p.verdicts, old)
		}
	}
	p.verdicts[judged{s, c}] = verdict{err, now.Add(verdictLife)}
}
