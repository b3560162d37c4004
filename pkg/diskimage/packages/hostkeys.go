package packages

import (
	"time"

	"github.com/imgpipe/imgpipe/pkg/diskimage"
	"github.com/imgpipe/imgpipe/pkg/diskimage/tree"
)

// hostKeyUnit makes ssh host keys where nothing else did. It waits for
// cloud-init, whose own keys then satisfy the condition; ssh.service would not
// start without keys, so it comes after. It is not ordered before ssh.socket,
// which basic.target waits for and this unit needs.
const hostKeyUnit = `[Unit]
Description=Make this machine's SSH host keys
Documentation=man:ssh-keygen(1)
After=cloud-init.service cloud-init-network.service
Before=ssh.service
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
`

const hostKeyUnitName = "imgpipe-ssh-hostkeys.service"

// addHostKeyUnit adds and enables the unit in a tree that has systemd and an
// OpenSSH server.
func addHostKeyUnit(t *tree.Tree, epoch time.Time) error {
	if !has(t, "/usr/sbin/sshd") || !has(t, "/usr/bin/ssh-keygen") || !has(t, "/lib/systemd/systemd") {
		return nil
	}
	const dir = "/etc/systemd/system/"
	unit := &tree.Inode{Mode: 0o644, MTime: epoch, Data: diskimage.Bytes([]byte(hostKeyUnit))}
	if err := t.Put(dir+hostKeyUnitName, unit); err != nil {
		return err
	}
	link := &tree.Inode{Kind: tree.Symlink, Mode: 0o777, MTime: epoch, Target: dir + hostKeyUnitName}
	return t.Put(dir+"multi-user.target.wants/"+hostKeyUnitName, link)
}
