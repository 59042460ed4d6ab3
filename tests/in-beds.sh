# shellcheck shell=bash
# Runs a Rust test program in beds: `in_beds REPORT PROGRAM [NAME…]`, with the arrays `bed`, the command up to the program, and
# `options`, those of the program before the names. All that it prints is in REPORT, and its exit code in `status`.
#
# A test has limits of its own, and says its outcome. A bed that says nothing for long, takes too long or has one test fail
# after the other is likely to be what has failed (docs/test-bed.md): it is ended (124), and the tests that have no outcome,
# or have failed there, run in another, up to twice.
in_beds() {
	local report=$1 program=$2 attempt rest
	shift 2
	local names=("$@")
	: >"$report"
	for attempt in 1 2 3; do
		status=0
		"${bed[@]}" "$program" "${options[@]}" "${names[@]}" | tee "$report.part" || status=$?
		# The last line may have no end.
		{ cat "$report.part" && echo; } >>"$report"
		[ "$status" = 124 ] || return 0
		mapfile -t rest < <(tests/unfinished "$program" "$report" "${options[@]}" "$@")
		printf '\n%s: bed %d was given up with %d tests to run\n' "${program##*/}" "$attempt" "${#rest[@]}"
		[ ${#rest[@]} -gt 0 ] || return 0
		names=(--exact "${rest[@]}")
	done
}
