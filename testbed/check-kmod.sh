#!/bin/sh
# Static checks of the module; any word of theirs is a failure.
#
#   check-kmod.sh OUT     builds and unpacks into OUT, an absolute path
#
# Warnings of the compiler (W=1) and of sparse (C=2), for each kernel; the kernel's own checkpatch
# and coccicheck, which Debian packages only inside linux-source; and what is a rule of this project.
set -eu

SOURCE=/usr/src/linux-source-6.12.tar.xz

# What does not apply to a module of its own for two kernels: their versions are compared, the
# kernel's own Qdisc is camel case, tables of a socket's functions are copied and changed, and user
# space has no __aligned().
CHECKPATCH_IGNORE=LINUX_VERSION_CODE,CONSTANT_COMPARISON,CAMELCASE,CONST_STRUCT,\
PREFER_DEFINED_ATTRIBUTE_MACRO

# sm_rings_wait() sleeps without the lock that its caller holds.
COCCICHECK_IGNORE='^$|^kmod/core/rings.c:.*: preceding lock on line'

failed=

complain() {
	echo "check-kmod: $*" >&2
	failed=yes
}

# Unpacks the few files of linux-source that are wanted.  It takes a while.
unpack() {
	if [ -z "$(find "$scripts" -prune -newer "$SOURCE" 2>/dev/null)" ]; then
		rm -rf "$scripts"
		mkdir -p "$scripts"
		tar -xJf "$SOURCE" -C "$scripts" --strip-components=2 --wildcards \
			'*/scripts/checkpatch.pl' '*/scripts/spelling.txt' \
			'*/scripts/const_structs.checkpatch' '*/scripts/coccinelle'
		touch "$scripts"
	fi
}

checkpatch() {
	git ls-files 'kmod/*.[ch]' | xargs perl "$scripts/checkpatch.pl" --no-tree --terse \
		--strict --no-summary --ignore "$CHECKPATCH_IGNORE" --file || complain checkpatch
}

# Prints what one rule finds in the module.
coccinelle_rule() {
	# shellcheck disable=SC2046 # options are words, in a line of the rule
	spatch -D report --very-quiet --no-show-diff --cocci-file "$1" \
		$(sed -n 's|^//.*Options: *||p' "$1") --dir kmod
}

# Rules in OCaml are left out: they take a compiler to run.
coccicheck() {
	grep -rL 'script:ocaml' "$scripts/coccinelle" |
		xargs -P "$(nproc)" -n 1 testbed/check-kmod.sh --rule >"$out/coccicheck" ||
		complain "a rule of coccicheck could not be run"
	if grep -vE "$COCCICHECK_IGNORE" "$out/coccicheck" >&2; then
		complain coccicheck
	fi
}

# Code that depends on the kernel's version is in one file.
versions() {
	if git grep -nE 'LINUX_VERSION_CODE|KERNEL_VERSION\(' -- kmod ':!kmod/compat.h' >&2; then
		complain "the kernel's version is asked for outside kmod/compat.h"
	fi
}

cd "$(dirname "$0")/.."
if [ "$1" = --rule ]; then
	coccinelle_rule "$2"
	exit
fi
out=$1
scripts=$out/scripts
testbed/setup.sh module "$out/module" C=2
unpack
checkpatch
coccicheck
versions
[ -z "$failed" ]
