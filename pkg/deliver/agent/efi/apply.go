package efi

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
)

// Apply makes the writes of a plan, and reads each back. It ends with the first
// that fails, since the others build on it, and returns that and how many are
// left: warnings, for none of it keeps the machine from booting as before. Where
// there is no room, our stale entries go first, although the order still names
// them: firmware skips those.
func Apply(vars Vars, p Plan) (warnings []error) {
	writes := slices.Clone(p.Writes)
	for len(writes) > 0 {
		err := put(vars, writes[0])
		if errors.Is(err, syscall.ENOSPC) && writes[0].Data != nil {
			if rest := makeRoom(vars, writes); len(rest) < len(writes) {
				writes = rest
				continue
			}
		}
		if err != nil {
			warnings = append(warnings, fmt.Errorf("%s: %w", writes[0].Name.Name, err))
			if writes[0].Name == entryName(p.Entry) {
				warnings = append(warnings, errors.New(`the firmware has no entry for the disk as it is now, and starts its \EFI\BOOT program if anything`))
			}
			if left := len(writes) - 1; left > 0 {
				warnings = append(warnings, fmt.Errorf("%d further changes of boot entries are left out", left))
			}
			return warnings
		}
		writes = writes[1:]
	}
	return nil
}

// makeRoom makes the deletions among writes, and returns those that are left.
func makeRoom(vars Vars, writes []Write) (rest []Write) {
	for _, w := range writes {
		if w.Data != nil || put(vars, w) != nil {
			rest = append(rest, w)
		}
	}
	return rest
}

func put(vars Vars, w Write) error {
	if w.Data == nil {
		if err := vars.Delete(w.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, _, err := vars.Get(w.Name); !errors.Is(err, fs.ErrNotExist) {
			return errors.New("deleted, and it is still there")
		}
		return nil
	}
	if err := vars.Set(w.Name, bootAttributes, w.Data); err != nil {
		return err
	}
	_, got, err := vars.Get(w.Name)
	if err != nil {
		return fmt.Errorf("written, and not to be read back: %w", err)
	}
	if !bytes.Equal(got, w.Data) {
		return fmt.Errorf("written as %x, and read back as %x", w.Data, got)
	}
	return nil
}
