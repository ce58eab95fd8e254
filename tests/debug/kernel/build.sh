#!/bin/sh
# Builds a debug kernel once and prints the directory that holds it: its image (`image`), its modules
# (`lib/modules/RELEASE`), and what is needed to build further modules for it.
#
#   build.sh [--built] VARIANT
#
#   uml    user-mode Linux with KASAN, lockdep and kmemleak
#   smp    x86-64 for QEMU with KASAN, lockdep and kmemleak
#   kcsan  x86-64 for QEMU with KCSAN, which finds data races
#
# With --built it builds nothing, and fails if the kernel is not there.
#
# Kernels are kept in ${STACKMAP_CACHE:-~/.cache/stackmap}/debug-kernel, under the name of what they
# were built from, so a second call costs nothing.  Needs Debian's linux-source-6.12, flex, bison,
# bc, libelf-dev and libssl-dev; uses ccache where there is one.
set -eu

die() { echo "build.sh: $*" >&2; exit 1; }

build=yes
[ "${1-}" != --built ] || { build=no; shift; }
variant=${1-}
image_target=bzImage
arch=x86_64
case $variant in
uml) fragments='base debug kasan uml' arch=um image_target=linux ;;
smp) fragments='base debug kasan x86 smp' ;;
kcsan) fragments='base debug x86 kcsan' ;;
*) die 'usage: build.sh [--built] uml|smp|kcsan' ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
tarball=/usr/src/linux-source-6.12.tar.xz
[ -e "$tarball" ] || die "$tarball is missing: install linux-source-6.12"
version=$(dpkg-query -W -f '${Version}' linux-source-6.12)

configs=
for fragment in $fragments; do configs="$configs $here/$fragment.config"; done
# A patch changes the sources that only user-mode Linux compiles.
patch=$here/uml-fork.patch
inputs=$configs
[ "$arch" != um ] || inputs="$inputs $patch"
# shellcheck disable=SC2086 # a list of paths without spaces
hash=$({ echo "$version"; cat $inputs; } | sha256sum | cut -c1-12)
cache=${STACKMAP_CACHE:-$HOME/.cache/stackmap}/debug-kernel
mkdir -p "$cache"
kernel=$cache/$variant-$hash
source=$cache/source-$version-$(sha256sum <"$patch" | cut -c1-12)

found() { [ ! -e "$kernel/built" ] || { echo "$kernel"; exit; }; }
found
[ $build = yes ] || die "the $variant debug kernel is not built: run 'make debug-kernel'"

# One build at a time; those that waited find the kernel made.
exec 9>"$cache/lock"
flock 9
found

if [ ! -e "$source/unpacked" ]; then
	rm -rf "$source"
	mkdir -p "$source"
	tar -xJf "$tarball" -C "$source" --strip-components=1
	patch -s -p1 -d "$source" <"$patch"
	touch "$source/unpacked"
fi

compiler=gcc
! command -v ccache >/dev/null || compiler='ccache gcc'
# A build has always the same time in it, or ccache would find nothing again.
kmake() {
	KBUILD_BUILD_TIMESTAMP='2024-01-01' KBUILD_BUILD_USER=stackmap KBUILD_BUILD_HOST=debug \
		CCACHE_BASEDIR=$cache nice -n 5 \
		make -s -C "$source" O="$kernel" ARCH="$arch" CC="$compiler" "$@" >&2
}

rm -rf "$kernel"
mkdir -p "$kernel"
kmake tinyconfig
(
	cd "$kernel"
	# shellcheck disable=SC2086
	"$source/scripts/kconfig/merge_config.sh" -m -O "$kernel" .config $configs >merge.log
)
kmake olddefconfig

# Options that other options rule out are dropped without a word: what is wanted must be there.
# shellcheck disable=SC2086
missing=$(cat $configs | awk -v result="$kernel/.config" '
	function option(line) {
		if (line ~ /^CONFIG_[A-Z0-9_]+=/) return substr(line, 1, index(line, "=") - 1)
		if (line ~ /^# CONFIG_[A-Z0-9_]+ is not set$/) return substr(line, 3, length(line) - 13)
		return ""
	}
	BEGIN { while ((getline line < result) > 0) if (line ~ /^CONFIG_/) is[option(line)] = line }
	{ name = option($0); if (name) wanted[name] = $0 }
	END {
		for (name in wanted) {
			found = name in is ? is[name] : "# " name " is not set"
			if (found != wanted[name]) print wanted[name] " (is: " found ")"
		}
	}' | sort)
[ -z "$missing" ] || die "the $variant kernel cannot have these options:
$missing"

started=$(date +%s)
kmake -j2 "$image_target" modules
if [ "$arch" = um ]; then
	cp "$kernel/linux" "$kernel/image"
else
	cp "$kernel/arch/x86/boot/bzImage" "$kernel/image"
fi

# What modprobe looks at, below the directory itself: modprobe -d DIRECTORY.
kmake INSTALL_MOD_PATH="$kernel" modules_install

# Modules need headers, symbols and the build's own tools, not the kernel's objects.
find "$kernel" \( -path "$kernel/scripts" -o -path "$kernel/tools" \) -prune -o \
	-type f \( -name '*.o' -o -name '*.a' -o -name '.*.cmd' \) -exec rm -f {} +
find "$kernel" -maxdepth 1 \( -name 'vmlinux*' -o -name linux -o -name '.tmp_*' \) -exec rm -f {} +
rm -rf "$kernel/arch/x86/boot"
echo "build.sh: the $variant kernel took $(($(date +%s) - started)) s" >&2
touch "$kernel/built"
echo "$kernel"
