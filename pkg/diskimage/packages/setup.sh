#!/bin/sh
# Runs as --setup-hook with the new root as $1, before anything is downloaded.
# Talks with imgpipe: descriptor 3 goes out, 4 comes in (see talk.go).
set -eu
root=$1
lists=$root/var/lib/apt/lists
archives=$root/var/cache/apt/archives
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"

# What is made now gets the time of now, and is clamped to the epoch later; under
# an epoch yet to come it would stay, and differ from run to run.
if [ "$SOURCE_DATE_EPOCH" -gt "$(date +%s)" ]; then
	echo "E: imgpipe: the epoch is later than this machine's clock" >&2
	exit 1
fi

# Maintainer scripts must not see whose machine this is. mmdebstrap has made a
# UTS namespace of its own only in this mode; in root mode imgpipe has.
[ "$MMDEBSTRAP_MODE" != unshare ] || hostname localhost
echo localhost >"$root/etc/hostname"
: >"$root/etc/resolv.conf"
chmod 0644 "$root/etc/hostname" "$root/etc/resolv.conf"
mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$archives/partial"
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/00imgpipe"

# apt gives dpkg a PATH of its own: let it find what the next hook makes
mkdir -p "$root/etc/apt/apt.conf.d"
echo 'DPkg::Path "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin";' >"$root/etc/apt/apt.conf.d/00imgpipe"

# openssh-server makes no keys where there are some: those would be thrown away
mkdir -p "$root/etc/ssh"
for type in rsa dsa ecdsa ed25519; do : >"$root/etc/ssh/ssh_host_${type}_key"; done

# A lock's packages are an archive of their own: instead of the others, or beside
# them and preferred. apt runs outside of the tree.
if [ -n "$IMGPIPE_LOCK" ]; then
	cp -r "${0%/*}/locked" "$root/tmp/imgpipe.locked"
	if [ "$IMGPIPE_LOCK" = strict ]; then
		mv "$root/etc/apt/sources.list" "$root/tmp/imgpipe.sources.list"
	else
		cp "$root/tmp/imgpipe.locked/preferences" "$root/etc/apt/preferences.d/00imgpipe"
	fi
	mkdir -p "$root/etc/apt/sources.list.d"
	echo "deb [trusted=yes] copy:$root/tmp/imgpipe.locked ./" >"$root/etc/apt/sources.list.d/00imgpipe.list"
fi

# the last indices of these sources, so that only news is fetched
read -r size <&4
[ "$size" = 0 ] || head -c "$size" <&4 | tar -xf - -C "$lists"
apt-get update --error-on=any
cd "$lists"
for f in *Release; do
	case $f in *imgpipe.locked*) continue ;; esac
	[ ! -f "$f" ] || echo "source $(sha256sum <"$f" | cut -d ' ' -f 1) $f" >&3
done
echo updated >&3

read -r answer <&4
[ "$answer" != stop ] || exit 3
if [ "$answer" = send ]; then
	find . -maxdepth 1 -type f ! -name lock ! -name '*imgpipe.locked*' -print0 | tar -cf - --null -T - >&3
	read -r answer <&4
fi
set -f
# shellcheck disable=SC2086
if ! apt-get -qq -y -o Acquire::ForceHash=SHA256 --print-uris install $answer >"$root/tmp/imgpipe.uris"; then
	# shellcheck disable=SC2086
	apt-get -q -y --simulate install $answer >&2 # says what depends on what it cannot have
	exit 1
fi
set +f
sed 's/^/uri /' <"$root/tmp/imgpipe.uris" >&3
echo planned >&3

# what the cache has of them; the rest is downloaded by apt as usual
read -r answer <&4
[ "$answer" != stop ] || exit 3
cd "$archives"
tar -xf - <&4
ls >"$root/tmp/imgpipe.had"

# Where packages are only unpacked, dpkg does nothing with them.
[ "$IMGPIPE_VARIANT" != extract ] || exit 0

# Decompressing takes longer than all else that dpkg does with a package, and is
# begun now, on a core that has nothing else to do: see the other hooks.
plain=$root/tmp/imgpipe.plain
mkdir "$plain"
{
	flock 9
	cut -d ' ' -f 2 <"$root/tmp/imgpipe.uris" | while read -r deb; do
		[ -f "$deb" ] && [ ! -e "$plain/$deb.taken" ] || continue
		dpkg-deb --fsys-tarfile "$deb" >"$plain/part" && mv "$plain/part" "$plain/$deb"
	done
} 3>&- 4<&- 9<"$plain" >/dev/null 2>&1 &
