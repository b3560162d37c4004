package authenticode_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/boot/authenticode"
)

// shapes are programs that differ in what signing has to mind.
func shapes() map[string][]byte {
	return map[string][]byte{
		"whole":              program(128, 0),
		"bytes behind":       program(128, 24),
		"to be padded":       program(128, 13),
		"headers at 4":       program(132, 3),
		"headers at 2":       program(130, 0),
		"headers at odd":     program(129, 1),
		"headers right away": program(64, 0),
	}
}

func TestSignVerifyStrip(t *testing.T) {
	one, two, other := newKey(t, "one", 2048), newKey(t, "two", 3072), newKey(t, "other", 2048)
	for name, plain := range shapes() {
		t.Run(name, func(t *testing.T) {
			signed := sign(t, plain, one.Signer)
			if !bytes.Equal(signed, sign(t, plain, one.Signer)) {
				t.Error("signed twice, it is not the same")
			}
			both := sign(t, signed, two.Signer)
			for file, certs := range map[*[]byte][]*x509.Certificate{&signed: {one.Cert}, &both: {one.Cert, two.Cert}} {
				for _, c := range certs {
					if by, err := verify(*file, other.Cert, c); err != nil || by != c {
						t.Errorf("by %v, %v, want %q", by, err, c.Subject)
					}
				}
				if _, err := verify(*file, other.Cert); !errors.Is(err, authenticode.ErrNotTrusted) {
					t.Errorf("another key: got %v", err)
				}
				if sum := binary.LittleEndian.Uint32((*file)[headerAt(*file)+24+64:]); sum != wordSum(*file) {
					t.Errorf("CheckSum %#x, want %#x", sum, wordSum(*file))
				}
				if len(*file)%8 != 0 {
					t.Errorf("%d bytes", len(*file))
				}
			}
			if _, err := verify(plain, one.Cert); !errors.Is(err, authenticode.ErrNotTrusted) || !strings.Contains(err.Error(), "not signed") {
				t.Errorf("unsigned: got %v", err)
			}
			sigs, err := authenticode.Signatures(diskimage.Bytes(both))
			digest, _ := authenticode.Digest(diskimage.Bytes(plain))
			if err != nil || len(sigs) != 2 || !sigs[0].Cert.Equal(one.Cert) || !sigs[1].Cert.Equal(two.Cert) || sigs[0].Digest != digest || sigs[1].Digest != digest {
				t.Errorf("signatures %+v, %v", sigs, err)
			}
			d, err := authenticode.Strip(diskimage.Bytes(both))
			if err != nil {
				t.Fatal(err)
			}
			got := read(t, d)
			want := append(slices.Clone(plain), make([]byte, -len(plain)&7)...)
			binary.LittleEndian.PutUint32(want[headerAt(want)+24+64:], wordSum(want))
			if !bytes.Equal(got, want) {
				t.Error("stripped, it is not what it was")
			}
		})
	}
}

func headerAt(b []byte) int { return int(binary.LittleEndian.Uint32(b[60:])) }

// wordSum is the checksum word by word.
func wordSum(b []byte) uint32 {
	b = slices.Clone(b)
	clear(b[headerAt(b)+24+64:][:4])
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) | uint32(append(b[i:], 0)[1])<<8
		sum = sum>>16 + sum&0xffff
	}
	return sum + uint32(len(b))
}

func read(t testing.TB, d diskimage.Disk) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEveryByteCounts has each bit of a signed program changed: it is no
// longer trusted, but for the checksum, which Authenticode leaves out, and for
// what of the signature itself says nothing.
func TestEveryByteCounts(t *testing.T) {
	key := newKey(t, "one", 2048)
	plain := program(128, 13)
	signed := sign(t, plain, key.Signer)
	body := (len(plain) + 7) &^ 7
	unheeded := 0
	for i := range signed {
		if i > 1100 && i < body-100 && i%16 != 0 {
			continue // sections: one byte like another
		}
		b := slices.Clone(signed)
		b[i] ^= 1 << (i % 8)
		_, err := verify(b, key.Cert)
		sum := i - (headerAt(signed) + 24 + 64)
		switch {
		case sum >= 0 && sum < 4:
			if err != nil {
				t.Errorf("the checksum: %v", err)
			}
		case i >= body:
			if err == nil {
				unheeded++
			}
		case err == nil:
			t.Errorf("byte %d of the program changed, and it is still trusted", i)
		}
	}
	// PKCS #7's version numbers and such.
	if unheeded > 200 {
		t.Errorf("%d bytes of the signature say nothing", unheeded)
	}
	for n := 0; n < len(signed); n += 3 {
		if _, err := verify(signed[:n], key.Cert); err == nil {
			t.Fatalf("cut to %d bytes it is still trusted", n)
		}
	}
}

func TestChain(t *testing.T) {
	root, leaf, other := newKey(t, "root", 2048), newKey(t, "leaf key", 2048), newKey(t, "other", 2048)
	middle := newKey(t, "the middle", 2048)
	middleCert, err := certify("the middle", middle.Cert.PublicKey.(*rsa.PublicKey), root.Signer)
	if err != nil {
		t.Fatal(err)
	}
	leafCert, err := certify("leaf", leaf.Cert.PublicKey.(*rsa.PublicKey), authenticode.Signer{Key: middle.Key, Cert: middleCert})
	if err != nil {
		t.Fatal(err)
	}
	signed := sign(t, program(128, 0), authenticode.Signer{Key: leaf.Key, Cert: leafCert, Chain: []*x509.Certificate{middleCert}})
	for _, c := range []*x509.Certificate{root.Cert, middleCert, leafCert} {
		if by, err := verify(signed, c); err != nil || by != c {
			t.Errorf("%q: %v, %v", c.Subject, by, err)
		}
	}
	if _, err := verify(signed, other.Cert); !errors.Is(err, authenticode.ErrNotTrusted) {
		t.Errorf("got %v", err)
	}
	alone := sign(t, program(128, 0), authenticode.Signer{Key: leaf.Key, Cert: leafCert})
	if _, err := verify(alone, root.Cert); !errors.Is(err, authenticode.ErrNotTrusted) {
		t.Errorf("without the middle: %v", err)
	}
}

func TestTimeIsSaidOnlyWhenGiven(t *testing.T) {
	key := newKey(t, "one", 2048)
	plain := program(128, 0)
	without := sign(t, plain, key.Signer)
	key.Time = time.Date(2026, 11, 25, 12, 0, 0, 5, time.UTC)
	with := sign(t, plain, key.Signer)
	if !bytes.Contains(with, []byte("261125120000Z")) || bytes.Contains(without, []byte("261125120000Z")) || !bytes.Equal(with, sign(t, plain, key.Signer)) {
		t.Error("the signing time is not said as given")
	}
	if _, err := verify(with, key.Cert); err != nil {
		t.Error(err)
	}
}

// wrong signs with another key than it says.
type wrong struct{ crypto.Signer }

func (w wrong) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, 256), nil
}

func TestSignErrors(t *testing.T) {
	one, two := newKey(t, "one", 2048), newKey(t, "two", 3072)
	small := newKey(t, "small", 1024)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for want, change := range map[string]func(b *[]byte, s *authenticode.Signer){
		"a key and its certificate are needed": func(_ *[]byte, s *authenticode.Signer) { s.Cert = nil },
		"for another key":                      func(_ *[]byte, s *authenticode.Signer) { s.Cert = two.Cert },
		"an RSA key of 1024 bits":              func(_ *[]byte, s *authenticode.Signer) { *s = small.Signer },
		"firmware takes RSA":                   func(_ *[]byte, s *authenticode.Signer) { s.Key = ec },
		"the key's signature does not fit":     func(_ *[]byte, s *authenticode.Signer) { s.Key = wrong{s.Key} },
		"a chain of 16":                        func(_ *[]byte, s *authenticode.Signer) { s.Chain = make([]*x509.Certificate, 16) },
		"no MS-DOS header":                     func(b *[]byte, _ *authenticode.Signer) { *b = nil },
		"no PE signature":                      func(b *[]byte, _ *authenticode.Signer) { le.PutUint32((*b)[60:], 1<<31) },
		"magic 0x10b":                          func(b *[]byte, _ *authenticode.Signer) { le.PutUint16((*b)[128+24:], 0x10b) },
		"4 data directories: no place":         func(b *[]byte, _ *authenticode.Signer) { le.PutUint32((*b)[128+24+108:], 4) },
		"17 data directories":                  func(b *[]byte, _ *authenticode.Signer) { le.PutUint32((*b)[128+24+108:], 17) },
		"section table ends at":                func(b *[]byte, _ *authenticode.Signer) { le.PutUint16((*b)[128+6:], 90) },
		"headers at 5121, the file":            func(b *[]byte, _ *authenticode.Signer) { le.PutUint32((*b)[128+24+60:], 5121) },
		"tools would hash different bytes":     func(b *[]byte, _ *authenticode.Signer) { le.PutUint32((*b)[128+24+240+40+16:], 2560) },
		"its sections end at":                  func(b *[]byte, _ *authenticode.Signer) { *b = (*b)[:5119] },
		"certificate table of no bytes":        func(b *[]byte, _ *authenticode.Signer) { le.PutUint32((*b)[128+168:], 8) },
		"certificate table at 8+8":             func(b *[]byte, _ *authenticode.Signer) { le.PutUint64((*b)[128+168:], 8|8<<32) },
	} {
		b, s := program(128, 0), one.Signer
		change(&b, &s)
		if _, err := authenticode.SignBytes(b, s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	b := program(128, 0)
	for range 16 {
		b = sign(t, b, one.Signer)
	}
	if _, err := authenticode.SignBytes(b, one.Signer); err == nil || !strings.Contains(err.Error(), "16 signatures already") {
		t.Errorf("got %v", err)
	}
	if _, err := authenticode.Sign(diskimage.Section(nil, 0, 5<<30), one.Signer); err == nil || !strings.Contains(err.Error(), "too much") {
		t.Errorf("got %v", err)
	}
}

func TestParseSigner(t *testing.T) {
	one, two := newKey(t, "one", 2048), newKey(t, "two", 3072)
	get := func(file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(one.Key.(*rsa.PrivateKey))})
	for _, key := range [][]byte{get(one.key), pkcs1} {
		s, err := authenticode.ParseSigner(key, slices.Concat([]byte("text\n"), get(one.cert), get(two.cert)))
		if err != nil || !s.Cert.Equal(one.Cert) || len(s.Chain) != 1 || !s.Chain[0].Equal(two.Cert) {
			t.Errorf("got %+v, %v", s, err)
		}
	}
	for want, in := range map[string][2][]byte{
		"key: no PRIVATE KEY":         {get(one.cert), get(one.cert)},
		"certificate: no CERTIFICATE": {get(one.key), get(one.key)},
		"it is encrypted":             {pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY"}), get(one.cert)},
		"is for another key":          {get(one.key), get(two.cert)},
		"key: 1048577 bytes":          {make([]byte, 1<<20+1), get(two.cert)},
		"certificate: x509":           {get(one.key), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})},
	} {
		if _, err := authenticode.ParseSigner(in[0], in[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// stored is a signed program that an earlier version of this package made, and
// the certificate in it. To make a key takes too long for fuzzing.
func stored(t testing.TB) ([]byte, *x509.Certificate) {
	t.Helper()
	b, err := os.ReadFile("testdata/signed.efi")
	if err != nil {
		t.Fatal(err)
	}
	sigs, err := authenticode.Signatures(diskimage.Bytes(b))
	if err != nil || len(sigs) != 1 {
		t.Fatalf("%d signatures, %v", len(sigs), err)
	}
	return b, sigs[0].Cert
}

func TestWhatWasSignedBeforeIsStillTaken(t *testing.T) {
	b, cert := stored(t)
	if by, err := verify(b, cert); err != nil || by != cert {
		t.Errorf("by %v, %v", by, err)
	}
}

// FuzzVerify has any file refused, or stripped to one that has the same digest,
// no signature and the right checksum.
func FuzzVerify(f *testing.F) {
	for _, b := range shapes() {
		f.Add(b)
	}
	signed, cert := stored(f)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := diskimage.Bytes(b)
		digest, err := authenticode.Digest(d)
		if err != nil {
			return
		}
		_, _ = authenticode.Signatures(d)
		_, _ = verify(b, cert)
		plain, err := authenticode.Strip(d)
		if err != nil {
			t.Fatal(err)
		}
		again, err := authenticode.Digest(plain)
		if err != nil || again != digest {
			t.Errorf("stripped, its digest is %x, %v; it was %x", again, err, digest)
		}
		if sigs, err := authenticode.Signatures(plain); err != nil || len(sigs) > 0 {
			t.Errorf("stripped, it has %d signatures, %v", len(sigs), err)
		}
		got := read(t, plain)
		if sum := binary.LittleEndian.Uint32(got[headerAt(got)+24+64:]); sum != wordSum(got) {
			t.Errorf("CheckSum %#x, want %#x", sum, wordSum(got))
		}
	})
}

// FuzzSignature has any PKCS #7 in a program refused or read.
func FuzzSignature(f *testing.F) {
	plain := program(128, 0)
	signed, _ := stored(f)
	f.Add(signed[len(program(128, 13))+3+8:])
	f.Fuzz(func(t *testing.T, der []byte) {
		if len(der) > 1<<16 {
			return
		}
		b := slices.Clone(plain)
		n := (8 + len(der) + 7) &^ 7
		binary.LittleEndian.PutUint32(b[128+168:], uint32(len(b)))
		binary.LittleEndian.PutUint32(b[128+168+4:], uint32(n))
		b = binary.LittleEndian.AppendUint32(b, uint32(8+len(der)))
		b = append(append(b, 0, 2, 2, 0), der...)
		b = append(b, make([]byte, len(plain)+n-len(b))...)
		sigs, err := authenticode.Signatures(diskimage.Bytes(b))
		if err == nil && (len(sigs) != 1 || sigs[0].Cert == nil) {
			t.Errorf("signatures %+v", sigs)
		}
	})
}
