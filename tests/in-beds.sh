# shellcheck shell=bash
# Runs a Rust test program in beds: `in_beds REPORT PROGRAM [NAME…]`, with the arrays `bed`, the command up to its `--`;
# `inside`, what comes before the program; `failures`, of the bed's options those that end it early; and `options`, those of
# the program before the names. What the program prints is in REPORT, and its exit code in `status`: 0, 101 if tests have
# failed, or another if its report cannot be trusted.
#
# A test has limits of its own, and says its outcome. A bed that says nothing for long, takes too long or has one test fail
# after the other is likely to be what has failed (docs/test-bed.md): it is ended (124). What it has not begun runs in a
# second one, and then what has failed or stood still, without being ended for failures.
in_beds() {
	local report=$1 program=$2 suspects rest names
	shift 2
	: >"$report"
	in_a_bed "${failures[@]}" -- "$@"
	[ "$status" = 124 ] || return 0
	tests/outcomes "$report" >"$report.outcomes"
	mapfile -t suspects < <(sed -nE 's/^result (fail|begun) //p' "$report.outcomes" | sort)
	tests/unfinished "$program" "$report" "${options[@]}" "$@" >"$report.rest" || return 0
	printf '\ngiven up: a bed of %s; failed or stood still there: %s\n' "${program##*/}" "${suspects[*]}"
	mapfile -t rest < <(comm -23 <(sort "$report.rest") <(printf '%s\n' "${suspects[@]}"))
	if [ ${#rest[@]} -gt 0 ]; then
		in_a_bed "${failures[@]}" -- --exact "${rest[@]}"
		if [ "$status" = 124 ]; then
			printf '\ngiven up: another bed of %s\n' "${program##*/}"
			tests/unfinished "$program" "$report" "${options[@]}" "$@" >"$report.rest" || return 0
			mapfile -t suspects <"$report.rest"
		elif [ "$status" != 0 ] && [ "$status" != 101 ]; then
			return 0
		fi
	fi
	[ ${#suspects[@]} -eq 0 ] || in_a_bed -- --exact "${suspects[@]}"
}

# Runs `program` in a bed and adds what it prints to `report`: `in_a_bed OPTION… -- NAME…`.
in_a_bed() {
	local early=() failed counted
	while [ "$1" != -- ]; do
		early+=("$1")
		shift
	done
	shift
	status=0
	"${bed[@]}" "${early[@]}" -- "${inside[@]}" "$program" "${options[@]}" "$@" | tee "$report.part" || status=$?
	# The last line may have no end.
	{ cat "$report.part" && echo; } >>"$report"
	[ "$status" = 0 ] || [ "$status" = 101 ] || return 0
	# What is not understood is no success. grep fails where it counts none.
	failed=$(sed -n 's/^test result: .* \([0-9]*\) failed.*/\1/p' "$report.part" | tail -n 1)
	counted=$(tests/outcomes "$report.part" | grep -c '^result fail ') || true
	if [ "$failed" != "$counted" ]; then
		echo "${program##*/}: ${failed:-no number of} tests failed, and $counted are named"
		status=125
	fi
}
