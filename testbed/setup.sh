#!/bin/sh
# Everything the project needs on a Debian 12 machine, in three steps that say nothing when there
# is nothing to do:
#
#   setup.sh packages               Debian's packages
#   setup.sh python VENV            a virtual environment with the project (editable) in it
#   setup.sh module OUT [MAKE...]   stackmap.ko for Debian's kernels, as OUT/<release>/stackmap.ko
set -eu

cd "$(dirname "$0")/.."

PACKAGES="
linux-image-cloud-amd64 linux-headers-cloud-amd64
linux-image-6.12-cloud-amd64 linux-headers-6.12-cloud-amd64
qemu-system-x86 qemu-system-common busybox-static
gcc make sparse cpio kmod xz-utils
python3-dev python3-venv
iproute2 tcpdump memcached libmemcached-tools"

say() {
	echo "setup: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# The guests and tests start the daemons they need; none is to run on this machine.
without_daemons() {
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	"$@"
}

packages() {
	missing=
	for package in $PACKAGES; do
		installed "$package" || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || fail "as root, please: apt-get install$missing"
	say "installing Debian packages:$missing"
	log=$(mktemp)
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086 # a list of words
	if ! { apt-get update && without_daemons apt-get install -y --no-install-recommends $missing
	} >"$log" 2>&1; then
		cat "$log" >&2
		fail "apt-get could not install:$missing"
	fi
	rm -f "$log"
}

python() {
	venv=$1
	if ! [ -x "$venv/bin/pip" ]; then
		say "making a Python environment in $venv"
		/usr/bin/python3 -m venv "$venv"
	fi
	say "installing stackmap and its Python dependencies in $venv"
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
	"$venv/bin/pip" install -q 'setuptools>=77' 'cffi>=2.0'
	"$venv/bin/pip" install -q --no-build-isolation -e '.[testbed,test,dev]'
}

# The newest kernel of each series that has headers: what the lab boots.
releases() {
	for series in 6.1 6.12; do
		for build in /lib/modules/"$series".*-cloud-amd64/build; do
			[ -d "$build" ] && basename "$(dirname "$build")"
		done | sort -V | tail -n 1
	done
}

# Built from a copy, so that one source tree serves all kernels and stays clean.
module() {
	out=$1
	shift
	for release in $(releases); do
		folder=$out/$release
		mkdir -p "$folder"
		(cd kmod && find . -name '*.[ch]' ! -name '*.mod.c' -o -name Kbuild) |
			while read -r file; do
				mkdir -p "$folder/$(dirname "$file")"
				cmp -s "kmod/$file" "$folder/$file" || cp "kmod/$file" "$folder/$file"
			done
		log=$(mktemp)
		if ! make -C "/lib/modules/$release/build" M="$folder" W=1 "$@" modules >"$log" 2>&1
		then
			cat "$log" >&2
			fail "stackmap.ko does not build for $release"
		fi
		if grep -E '(warning|error):' "$log" >&2; then
			fail "stackmap.ko does not build cleanly for $release"
		fi
		rm -f "$log"
	done
}

step=${1:?packages, python or module}
shift
case $step in
packages | python | module) "$step" "$@" ;;
*) fail "no such step: $step" ;;
esac
