package sign

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// envelope is a DSSE envelope: signatures over a typed payload.
type envelope struct {
	payloadType string
	payload     []byte
	signatures  [][]byte
}

// pae is what is signed: DSSE protocol v1, "Signature Definition". The lengths
// in it keep type and payload apart.
func pae(payloadType string, payload []byte) []byte {
	out := []byte("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(out, payload...)
}

// parseEnvelope reads an envelope of an in-toto statement. Nothing of it is
// verified yet.
func parseEnvelope(b []byte, limit int) (*envelope, error) {
	m, err := members(b)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	e := new(envelope)
	if e.payloadType, err = text(m, "payloadType"); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if e.payloadType != payloadTypeInToto {
		return nil, fmt.Errorf("envelope: payload type %q, want %q", e.payloadType, payloadTypeInToto)
	}
	if e.payload, err = encoded(m, "payload"); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	sigs, err := list(m, "signatures", limit)
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	for i, raw := range sigs {
		s, err := members(raw)
		if err != nil {
			return nil, fmt.Errorf("envelope: signature %d: %w", i, err)
		}
		sig, err := encoded(s, "sig")
		if err != nil {
			return nil, fmt.Errorf("envelope: signature %d: %w", i, err)
		}
		e.signatures = append(e.signatures, sig)
	}
	return e, nil
}

// parseBundle reads a sigstore bundle v0.3 with a DSSE envelope, which has one
// signature in a bundle. hint is the ID of the key that it says to be signed
// with, which proves nothing, or zero. What a transparency log or a time stamp
// authority added is not looked at.
func parseBundle(b []byte) (e *envelope, hint diskimage.Digest, err error) {
	if len(b) > MaxBundle {
		return nil, hint, fmt.Errorf("bundle has %d bytes, at most %d are allowed", len(b), MaxBundle)
	}
	m, err := members(b)
	if err != nil {
		return nil, hint, fmt.Errorf("bundle: %w", err)
	}
	mediaType, err := text(m, "mediaType")
	if err != nil {
		return nil, hint, fmt.Errorf("bundle: %w", err)
	}
	if mediaType != MediaTypeBundle {
		return nil, hint, fmt.Errorf("bundle: media type %q, want %q", mediaType, MediaTypeBundle)
	}
	for name := range m {
		switch name {
		case "mediaType", "verificationMaterial", "dsseEnvelope":
		case "messageSignature":
			return nil, hint, errors.New("bundle: signs a blob, not a statement")
		default:
			return nil, hint, fmt.Errorf("bundle: %q is not known", name)
		}
	}
	if hint, err = parseHint(m["verificationMaterial"]); err != nil {
		return nil, hint, fmt.Errorf("bundle: verificationMaterial: %w", err)
	}
	if m["dsseEnvelope"] == nil {
		return nil, hint, errors.New("bundle: no envelope")
	}
	if e, err = parseEnvelope(m["dsseEnvelope"], 1); err != nil {
		return nil, hint, fmt.Errorf("bundle: %w", err)
	}
	return e, hint, nil
}

func parseHint(raw json.RawMessage) (hint diskimage.Digest, err error) {
	if raw == nil {
		return hint, errors.New("missing")
	}
	m, err := members(raw)
	if err != nil {
		return hint, err
	}
	if m["publicKey"] == nil { // a certificate: some key of ours may have signed all the same
		return hint, nil
	}
	key, err := members(m["publicKey"])
	if err != nil {
		return hint, err
	}
	if key["hint"] == nil {
		return hint, nil
	}
	s, err := text(key, "hint")
	if b, err := base64.StdEncoding.DecodeString(s); err == nil && len(b) == len(hint) {
		copy(hint[:], b)
	}
	return hint, err
}

// encodeBundle returns a bundle as cosign writes it.
func encodeBundle(payload, sig []byte, key *Key) ([]byte, error) {
	type signature struct {
		Sig []byte `json:"sig"`
	}
	var b struct {
		MediaType string `json:"mediaType"`
		Material  struct {
			PublicKey struct {
				Hint string `json:"hint"`
			} `json:"publicKey"`
		} `json:"verificationMaterial"`
		Envelope struct {
			Payload     []byte      `json:"payload"`
			PayloadType string      `json:"payloadType"`
			Signatures  []signature `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	b.MediaType = MediaTypeBundle
	b.Material.PublicKey.Hint = key.hint()
	b.Envelope.Payload, b.Envelope.PayloadType = payload, payloadTypeInToto
	b.Envelope.Signatures = []signature{{sig}}
	out, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if len(out) > MaxBundle {
		return nil, fmt.Errorf("bundle has %d bytes, at most %d are allowed", len(out), MaxBundle)
	}
	return out, nil
}
