#!/bin/sh
# Runs as --customize-hook with the finished root as $1.
set -eu
root=$1

# what the other hooks put aside, on all cores
flock "$root/tmp/imgpipe.plain" true
for program in dpkg-deb py3compile update-initramfs update-ca-certificates; do
	rm "$root/usr/local/sbin/$program"
done
# the directory is base-files' business, which makes others, too
[ -d "$root/usr/local/bin" ] || (cd "$root" && rmdir -p --ignore-fail-on-non-empty usr/local/sbin)
(
	cd "$root/tmp/imgpipe.py3compile"
	flock 9
	find . -type f -print0 |
		xargs -0 -r -P "$(nproc)" -I {} sh -c 'xargs -0 -a "$1" chroot "$2" py3compile && rm "$1"' sh {} "$root"
) 9<"$root/tmp/imgpipe.py3compile" &
compiling=$!
for kernel in "$root"/boot/vmlinuz-*; do
	[ -f "$kernel" ] || continue
	version=${kernel##*/vmlinuz-}
	if [ "${IMGPIPE_INITRAMFS:-}" != no ] && [ -x "$root/usr/sbin/update-initramfs" ] && [ ! -e "$root/boot/initrd.img-$version" ]; then
		chroot "$root" /usr/sbin/update-initramfs -c -k "$version"
	fi
	echo "kernel $version" >&3
done
wait "$compiling"
dpkg-query --admindir="$root/var/lib/dpkg" -W \
	-f='package ${Package} ${Version} ${Architecture} ${db:Status-Status}\n' >&3

cd "$root/var/cache/apt/archives"
echo debs >&3
for f in *.deb; do
	[ ! -f "$f" ] || grep -qxF -e "$f" "$root/tmp/imgpipe.had" || echo "$f"
done >"$root/tmp/imgpipe.new"
tar -cf - -T "$root/tmp/imgpipe.new" >&3

[ "$IMGPIPE_LOCK" != strict ] || mv "$root/tmp/imgpipe.sources.list" "$root/etc/apt/sources.list"
rm -f "$root/etc/apt/sources.list.d/00imgpipe.list" "$root/etc/apt/preferences.d/00imgpipe"

# the empty keys of the other hook, and any of a type that it does not know: they
# would differ from run to run, and secrets do not belong in a cache
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub
rmdir --ignore-fail-on-non-empty "$root/etc/ssh"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/archives/partial/* \
	"$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* \
	"$root/etc/dpkg/dpkg.cfg.d/00imgpipe" "$root/etc/apt/apt.conf.d/00imgpipe" "$root"/tmp/imgpipe.*
echo done >&3
