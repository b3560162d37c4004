package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unicode/utf16"

	"github.com/imgpipe/imgpipe/pkg/deliver/agent/efi"
	"github.com/imgpipe/imgpipe/pkg/diskimage"
)

// Layout of OVMF's variables in flash: edk2, MdePkg's PiFirmwareVolume.h and
// MdeModulePkg's VariableFormat.h.
const (
	volumeHeaderSize = 48 // where a firmware volume says the size of its header
	storeHeader      = 28
	variableHeader   = 60
	variableStart    = 0x55aa
	variableAdded    = 0x3f
	variableMoving   = 0x3e // being replaced, and still it
)

var storeGUID = diskimage.MustGUID("aaf32c78-947b-439a-a180-2e144ec37792") // authenticated variables

// ReadVars reads the EFI variables of a machine that is off, from its file.
func ReadVars(file string) (efi.Memory, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m, err := parseVars(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

func parseVars(b []byte) (efi.Memory, error) {
	le := binary.LittleEndian
	if len(b) < volumeHeaderSize+2 {
		return nil, errors.New("no firmware volume")
	}
	at := int(le.Uint16(b[volumeHeaderSize:]))
	if at+storeHeader > len(b) || diskimage.GUID(b[at:at+16]).Mixed() != storeGUID {
		return nil, errors.New("no store of authenticated variables")
	}
	size := int64(le.Uint32(b[at+16:]))
	if size < storeHeader || size > int64(len(b)-at) {
		return nil, fmt.Errorf("a store of %d bytes", size)
	}
	b = b[at+storeHeader : at+int(size)]
	m := efi.Memory{}
	for len(b) >= variableHeader && le.Uint16(b) == variableStart {
		state, attributes := b[2], le.Uint32(b[4:])
		name, data := int64(le.Uint32(b[36:])), int64(le.Uint32(b[40:]))
		end := variableHeader + name + data
		if end > int64(len(b)) {
			return nil, fmt.Errorf("a variable of %d bytes where %d are left", end, len(b))
		}
		n := efi.Name{Name: wide(b[variableHeader : variableHeader+name]), Vendor: diskimage.GUID(b[44:60]).Mixed()}
		if _, newer := m[n]; state == variableAdded || state == variableMoving && !newer {
			m[n] = efi.Variable{Attributes: attributes, Data: append([]byte(nil), b[variableHeader+name:end]...)}
		}
		b = b[min(int64(len(b)), (end+3)&^3):]
	}
	return m, nil
}

func wide(b []byte) string {
	var text []uint16
	for ; len(b) >= 2; b = b[2:] {
		if c := binary.LittleEndian.Uint16(b); c != 0 {
			text = append(text, c)
		}
	}
	return string(utf16.Decode(text))
}
