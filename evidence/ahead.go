package evidence

import "context"

// Ahead lets a source read its next page while each works on the one before. read hands its pages to emit and returns
// when emit fails, or at its end. The error is each's, if it failed, or else read's. Both have returned when Ahead does.
func Ahead(ctx context.Context, read func(ctx context.Context, emit func(page []Object) error) error, each func(page []Object) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pages := make(chan []Object)
	ended := make(chan error, 1)
	go func() {
		defer close(pages)
		ended <- read(ctx, func(page []Object) error {
			select {
			case pages <- page:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	var refused error
	for page := range pages {
		if refused == nil {
			if refused = each(page); refused != nil {
				cancel(refused)
			}
		}
	}
	if err := <-ended; refused == nil {
		return err
	}
	return refused
}
