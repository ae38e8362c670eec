package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// Bounds of what an API server, or whatever answers in its place, can make us read, keep and do.
const (
	// maxAnswer is of one answer, after decompression, in bytes. etcd takes objects of 1.5 MiB, and what is asked for
	// here is one object's metadata, a page of them, or what one group serves.
	maxAnswer = 8 << 20
	// maxPages is of one list: pageSize objects each.
	maxPages = 200
	pageSize = "50"
	// maxVersions is of one group.
	maxVersions = 32
	// maxReason is of the word for an error, and maxToken of where a list goes on, in bytes.
	maxReason = 64
	maxToken  = 8192
	// maxServers is of the addresses that a cluster publishes.
	maxServers = 100
)

// limited bounds every answer, and follows none to another address.
type limited struct {
	next     http.RoundTripper
	answered func(status int) // of Config
}

var _ utilnet.RoundTripperWrapper = limited{}

// RoundTrip implements http.RoundTripper.
func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(r)
	status := 0
	if err == nil {
		status = resp.StatusCode
	}
	if l.answered != nil {
		l.answered(status)
	}
	if err != nil {
		return nil, err
	}
	if status/100 == 3 { // followed, what another one does would be taken for what this API server does
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w: it sends us elsewhere (HTTP %d)", migrate.ErrBadAnswer, status)
	}
	resp.Body = &limitedBody{body: resp.Body, left: maxAnswer, path: r.URL.Path}
	return resp, nil
}

// WrappedRoundTripper lets client-go cancel a request that takes too long. Without it, it prints a line that is no JSON.
func (l limited) WrappedRoundTripper() http.RoundTripper { return l.next }

// limitedBody fails where an answer is longer than it may be; a reader that merely stopped would cut it.
type limitedBody struct {
	body io.ReadCloser
	left int
	path string
}

// Read implements io.Reader.
func (l *limitedBody) Read(p []byte) (int, error) {
	if len(p) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.body.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, &tooLong{l.path}
	}
	return n, err
}

// tooLong is the error of an answer of more than maxAnswer bytes. It wraps ErrBadAnswer.
type tooLong struct{ path string }

func (t *tooLong) Error() string {
	return fmt.Sprintf("%v: the answer to %s has more than %d bytes", migrate.ErrBadAnswer, t.path, maxAnswer)
}

func (t *tooLong) Unwrap() error { return migrate.ErrBadAnswer }

// Close implements io.Closer.
func (l *limitedBody) Close() error { return l.body.Close() }

// do makes a request and returns the answer's body. The error is what the API server said: Result.Raw alone knows its code
// and not its words. It is not repeated here: how long to wait is not for the API server to say.
func do(ctx context.Context, request *rest.Request) ([]byte, error) {
	result := request.MaxRetries(0).Do(ctx)
	err := result.Error()
	if long, ok := errors.AsType[*tooLong](err); ok {
		return nil, long // without the "please retry" that client-go puts before it
	}
	if err != nil {
		return nil, shortened(err)
	}
	return result.Raw()
}

// shortened keeps of an API server's error what is used of it, and its words safe for a terminal.
func shortened(err error) error {
	full, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok {
		return err
	}
	unexpected := apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
	status := metav1.Status{Code: full.ErrStatus.Code, Reason: full.ErrStatus.Reason, Message: evidence.Printable(full.ErrStatus.Message)}
	if len(status.Reason) > maxReason {
		status.Reason = metav1.StatusReasonUnknown
	}
	if unexpected {
		status.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: metav1.CauseTypeUnexpectedServerResponse}}}
	}
	return &apierrors.StatusError{ErrStatus: status}
}

// list asks for a list, page by page, until it ends, and gives each item to each. A list that comes back to where it was, or has no
// end, is ErrBadAnswer, and so is an answer that is no list: {} from a proxy would be an empty one.
func list[T any](ctx context.Context, request func() *rest.Request, each func(item T) error) error {
	seen := map[string]bool{}
	token := ""
	for range maxPages {
		r := request().Param("limit", pageSize)
		if token != "" {
			r = r.Param("continue", token)
		}
		answer, err := do(ctx, r)
		if err != nil {
			return err
		}
		var page struct {
			metav1.TypeMeta
			Metadata metav1.ListMeta `json:"metadata"`
			Items    []T             `json:"items"`
		}
		if err = json.Unmarshal(answer, &page); err == nil && !strings.HasSuffix(page.Kind, "List") {
			err = errors.New("it is no list")
		}
		if err != nil {
			return fmt.Errorf("%w: the list at %s: %w", migrate.ErrBadAnswer, r.URL().Path, err)
		}
		for _, item := range page.Items {
			if err := each(item); err != nil {
				return err
			}
		}
		if token = page.Metadata.Continue; token == "" {
			return nil
		}
		if len(token) > maxToken || seen[token] {
			return fmt.Errorf("%w: a circular list", migrate.ErrBadAnswer)
		}
		seen[token] = true
	}
	return fmt.Errorf("%w: a list of more than %d pages", migrate.ErrBadAnswer, maxPages)
}
