#!/bin/sh
# Runs gcc without the options that only a newer one knows: each round drops those
# that the last one told of. Alignment of functions is asked for in the older way.
said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT
for round in 1 2 3 4 5 6 7 8; do
	LC_ALL=C gcc "$@" 2>"$said"
	status=$?
	unknown=$(sed -n "s/.*error: unrecognized command-line option '\([^']*\)'.*/\1/p" "$said")
	[ $status -ne 0 ] && [ -n "$unknown" ] || break
	count=$#
	for word; do
		for u in $unknown; do
			[ "$word" = "$u" ] || continue
			case $word in
			-fmin-function-alignment=*) word=-falign-functions=${word#*=} ;;
			*) word= ;;
			esac
			break
		done
		[ -z "$word" ] || set -- "$@" "$word"
	done
	shift "$count"
done
cat "$said" >&2
exit $status
