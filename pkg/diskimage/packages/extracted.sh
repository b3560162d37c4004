#!/bin/sh
# Runs as --extract-hook with the root as $1, where packages are only unpacked:
# no script of theirs has run or will.
set -eu
root=$1
for kernel in "$root"/boot/vmlinuz-*; do
	[ ! -f "$kernel" ] || echo "kernel ${kernel##*/vmlinuz-}" >&3
done
cd "$root/var/cache/apt/archives"
for f in *.deb; do
	[ ! -f "$f" ] || dpkg-deb -W --showformat='package ${Package} ${Version} ${Architecture} installed\n' "$f" >&3
done
echo debs >&3
for f in *.deb; do
	[ ! -f "$f" ] || grep -qxF -e "$f" "$root/tmp/imgpipe.had" || echo "$f"
done >"$root/tmp/imgpipe.new"
tar -cf - -T "$root/tmp/imgpipe.new" >&3

rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/archives/partial/* \
	"$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* "$root/etc/ssh" \
	"$root/etc/dpkg/dpkg.cfg.d/00imgpipe" "$root/etc/apt/apt.conf.d/00imgpipe" "$root"/tmp/imgpipe.*
echo done >&3
