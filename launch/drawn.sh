#!/bin/sh
# Draw people, train a small recognizer on them alone, and export its weights to OUT/weights:
#
#     sh launch/drawn.sh [OUT [PEOPLE [further options of sparface train]]]
#
# Run it again to resume; delete OUT/weights to export again. Afterwards, measure it on real people:
#
#     sparface evaluate verification --checkpoint OUT/run --pairs pairs.txt --photos lfw/
set -eu
out=${1:-runs/drawn}
people=${2:-3000}
[ $# -lt 2 ] || shift
[ $# -lt 1 ] || shift

draw() { # NAME PEOPLE SEED
    [ -e "$out/shards/$1/manifest.json" ] ||
        sparface draw "$out/shards/$1" --people "$2" --photos 6 --size 64 --seed "$3"
}

draw people "$people" 0
draw others 200 1
sparface train --config "$(dirname "$0")/drawn.yaml" \
    --data.shards "$out/shards/people" --validation.shards "$out/shards/others" --out "$out/run" "$@"
[ -e "$out/weights" ] || sparface export "$out/run" "$out/weights"
