package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/imgpipe/imgpipe/pkg/oci"
)

// Error codes of distribution-spec 1.1, "Error Codes". UNKNOWN is
// distribution's for what is none of them.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeTooMany             = "TOOMANYREQUESTS"
	codeUnknown             = "UNKNOWN"
)

// failure is an answer that says what is wrong with a request.
type failure struct {
	status int
	errors []problem
}

type problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

func (f *failure) Error() string {
	p := f.errors[0]
	return fmt.Sprintf("%d %s: %s", f.status, p.Code, p.Message)
}

func fail(status int, code, format string, args ...any) error {
	return &failure{status, []problem{{Code: code, Message: fmt.Sprintf(format, args...)}}}
}

// errGone is a body that the client did not send to its end.
var errGone = errors.New("the client broke off")

// failureOf turns any error into an answer. What is the server's own matter
// keeps its words, and the paths in them, for the log.
func failureOf(err error) (f *failure, own bool) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f, false
	}
	status, text := http.StatusInternalServerError, "the registry could not do this; its log says why"
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		status, text = http.StatusRequestTimeout, "the body stood still for too long"
	case errors.Is(err, errGone), errors.Is(err, context.Canceled):
		status, text = http.StatusBadRequest, "the body ended early"
	case errors.Is(err, oci.ErrCorrupt):
		text = "what the registry has of this is damaged; push it again"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		status, text = http.StatusInsufficientStorage, "no room left on the registry's disk"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		text = "the registry may not write its directory, or read it"
	}
	return &failure{status, []problem{{Code: codeUnknown, Message: text}}}, true
}

// fail answers with an error, unless an answer has begun.
func (s *stream) fail(req *http.Request, err error) {
	f, own := failureOf(err)
	if own {
		s.broke = err
	}
	if s.code != 0 {
		s.broke = err
		return
	}
	body, err := json.Marshal(map[string]any{"errors": f.errors})
	if err != nil { // strings always encode
		body = []byte(`{"errors":[]}`)
	}
	h := s.Header()
	for _, name := range []string{"Content-Length", "Etag", "Cache-Control", "Docker-Content-Digest"} {
		h.Del(name)
	}
	if f.status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", `Basic realm="imgpush registry", charset="UTF-8"`)
	}
	if f.status == http.StatusTooManyRequests {
		h.Set("Retry-After", "10")
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	s.WriteHeader(f.status)
	if req.Method != http.MethodHead {
		_, _ = s.Write(body) // the client is told, or has gone
	}
}
