#!/bin/sh
# Everything the project needs on a Debian 12 machine, in three steps that say nothing when there
# is nothing to do:
#
#   setup.sh packages               Debian's packages
#   setup.sh python VENV            a virtual environment with the project (editable) in it
#   setup.sh module OUT [MAKE...]   stackmap.ko for Debian's kernels, as OUT/<release>/stackmap.ko
#                                   (OUT absolute; warnings are errors)
#
# and for tests, static checks and debug kernels
#
#   setup.sh test-packages                  what the tests take besides
#   setup.sh check-packages                 what the checks take besides
#   setup.sh debug-packages                 what building one takes besides
#   setup.sh module-for BUILD OUT [MAKE...] OUT/stackmap.ko for the kernel in the directory BUILD
set -eu

cd "$(dirname "$0")/.."

PACKAGES="
linux-image-cloud-amd64 linux-headers-cloud-amd64
linux-image-6.12-cloud-amd64 linux-headers-6.12-cloud-amd64
qemu-system-x86 qemu-system-common busybox-static
gcc libc6-dev make cpio kmod xz-utils
python3-dev python3-venv
iproute2 tcpdump ethtool memcached libmemcached-tools"
TEST_PACKAGES="dkms systemd udev nftables openssl libpython3.11-testsuite redis-server postgresql"
CHECK_PACKAGES="sparse shellcheck coccinelle linux-source-6.12"
DEBUG_PACKAGES="linux-source-6.12 patch flex bison bc libelf-dev libssl-dev ccache"
POLICY=/usr/sbin/policy-rc.d

log=$(mktemp)
policy_is_ours=

clean_up() {
	rm -f "$log"
	[ -z "$policy_is_ours" ] || rm -f "$POLICY"
}
trap clean_up EXIT

say() {
	echo "setup: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

# Keeps what a command prints in the log, and shows it if the command fails.
quietly() {
	if ! "$@" >"$log" 2>&1; then
		cat "$log" >&2
		fail "failed: $*"
	fi
}

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Tests start the daemons they need: installing one's package starts none on this machine.
forbid_daemons() {
	if [ ! -e "$POLICY" ]; then
		policy_is_ours=yes
		printf '#!/bin/sh\nexit 101\n' >"$POLICY"
		chmod 755 "$POLICY"
	fi
}

packages() {
	missing=
	for package in "$@"; do
		installed "$package" || missing="$missing $package"
	done
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || fail "as root, please: apt-get install$missing"
	say "installing Debian packages:$missing"
	export DEBIAN_FRONTEND=noninteractive
	forbid_daemons
	quietly apt-get update
	# shellcheck disable=SC2086 # a list of words
	quietly apt-get install -y --no-install-recommends $missing
}

python() {
	venv=$1
	if ! [ -x "$venv/bin/pip" ]; then
		say "making a Python environment in $venv"
		quietly /usr/bin/python3 -m venv "$venv"
	fi
	say "installing stackmap and its Python dependencies in $venv"
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
	quietly "$venv/bin/pip" install 'setuptools>=77' 'cffi>=2.0'
	quietly "$venv/bin/pip" install --no-build-isolation -e '.[testbed,test,dev]'
}

# The newest kernel of each series that has headers: what the lab boots.
releases() {
	for series in 6.1 6.12; do
		for build in /lib/modules/"$series".*-cloud-amd64/build; do
			[ -d "$build" ] && basename "$(dirname "$build")"
		done | sort -V | tail -n 1
	done
}

module() {
	out=$1
	shift
	for release in $(releases); do
		module_for "/lib/modules/$release/build" "$out/$release" "$@"
	done
}

# Built from a copy, so that one source tree serves all kernels and stays clean.
module_for() {
	build=$1
	folder=$2
	shift 2
	find kmod -name '*.[ch]' ! -name '*.mod.c' -o -name Kbuild | while read -r file; do
		copy=$folder/${file#kmod/}
		mkdir -p "$(dirname "$copy")"
		cmp -s "$file" "$copy" || cp "$file" "$copy"
	done
	[ -e "$folder/stackmap.ko" ] || say "building stackmap.ko for the kernel in $build"
	# Not as a part of the make that may have started this: its jobs are not to be had from here.
	quietly env -u MAKEFLAGS -u MFLAGS make -C "$build" -j"$(nproc)" M="$folder" W=1 "$@" modules
	if grep -E '(warning|error):' "$log" >&2; then
		find "$folder" -name "*.o" -delete
		fail "stackmap.ko does not build cleanly for the kernel in $build"
	fi
}

# kbuild refuses spaces and colons; make or the shell misreads the others.
here=$(pwd -P)
case $here in
*[[:space:]:\;\#%\$\"\'\`\\\&\|\(\)\<\>\*\?]*)
	fail "modules cannot be built in '$here': move this folder to a path without spaces, colons and" \
		"other characters that make or the shell take for their own"
	;;
esac

step=${1:-}
case $step in
packages)
	# shellcheck disable=SC2086 # a list of words
	packages $PACKAGES
	;;
test-packages)
	# shellcheck disable=SC2086
	packages $TEST_PACKAGES
	;;
check-packages)
	# shellcheck disable=SC2086
	packages $CHECK_PACKAGES
	;;
debug-packages)
	# shellcheck disable=SC2086
	packages $DEBUG_PACKAGES
	;;
python | module)
	shift
	"$step" "$@"
	;;
module-for)
	shift
	module_for "$@"
	;;
*) fail "name a step: packages, python, module, test-packages, check-packages, debug-packages or module-for" ;;
esac
