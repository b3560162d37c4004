package gpt

import (
	"errors"
	"fmt"
	"io"
	"reflect"
)

// Check reports what is wrong with a GPT though Parse reads it: which of its two
// copies is damaged or missing, or that they differ. It is nil for a table that
// is right, and what Parse says for one that cannot be read.
func Check(r io.ReaderAt, diskSize, sectorSize int64) error {
	if _, err := Parse(r, diskSize, sectorSize); err != nil {
		return err
	}
	d := disk{r, diskSize, sectorSize}
	last := diskSize/sectorSize - 1
	primary, primaryErr := d.table(1)
	backup, backupErr := d.table(last)
	switch {
	case primaryErr != nil:
		return fmt.Errorf("gpt: the primary table is damaged, the backup is read: %w", primaryErr)
	case errors.Is(backupErr, ErrNone):
		return fmt.Errorf("gpt: there is no backup table at the end of the disk (LBA %d)", last)
	case backupErr != nil:
		return fmt.Errorf("gpt: the backup table is damaged: %w", backupErr)
	case !reflect.DeepEqual(primary, backup):
		return errors.New("gpt: the backup table has other contents than the primary, which is read")
	}
	return nil
}
