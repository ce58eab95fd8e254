#!/bin/bash
# Runs one suite of tests, or shows what suites that ran side by side have said.
#
#   suite.sh run NAME COMMAND...    keeps the output in out/test/NAME.log, and how long it took; with
#                                   QUIET set, prints only how it ended
#   suite.sh show NAME...           prints the output of each, failed suites last; fails if one failed
set -uo pipefail

cd "$(dirname "$0")/.." || exit
out=out/test
# A make that a suite starts is none of the one that starts suites.
unset MAKEFLAGS MFLAGS MAKELEVEL

run() {
	name=$1
	shift
	mkdir -p "$out"
	rm -f "$out/$name".*
	TIMEFORMAT="$name: %R s, of processor time %U s in programs and %S s in the kernel"
	if [ -n "${QUIET:-}" ]; then
		{ time "$@" >"$out/$name.log" 2>&1; } 2>"$out/$name.time"
	else
		{ time "$@" 2>&1 | tee "$out/$name.log"; } 2>"$out/$name.time"
	fi
	status=$?
	if [ "$status" = 0 ]; then
		touch "$out/$name.passed"
		cat "$out/$name.time"
	else
		echo "$(cat "$out/$name.time"): FAILED"
	fi
	return "$status"
}

show() {
	failed=()
	for name in "$@"; do
		if [ -e "$out/$name.passed" ]; then
			echo "--- $name"
			cat "$out/$name.log"
		else
			failed+=("$name")
		fi
	done
	for name in "${failed[@]}"; do
		echo "--- $name FAILED"
		cat "$out/$name.log" 2>/dev/null || echo 'It did not run.'
	done
	for name in "$@"; do
		cat "$out/$name.time" 2>/dev/null
	done
	if [ "${#failed[@]}" != 0 ]; then
		echo "FAILED: ${failed[*]}"
		return 1
	fi
}

case ${1:-} in
run | show) "$@" ;;
*)
	echo 'usage: suite.sh run NAME COMMAND... | show NAME...' >&2
	exit 2
	;;
esac
