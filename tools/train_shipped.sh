#!/usr/bin/env bash
# The shipped lamp, from nothing: learned at 64×32, grown to 256×128, exported and scored.
#
#     tools/train_shipped.sh OUT              # goes on where it stopped, when it is run again
#     MINUTES=12 tools/train_shipped.sh OUT   # a shorter run, finished in time: on a GPU that is lent for minutes
#
# OUT/run is the run, OUT/lava the weights with their card, OUT/lava.json the score.
#   MLXLAVA  the command; .venv/bin/mlxlava when not set (make setup)
#   MINUTES  the training is finished after so many; run again, it goes on for as many more
#   OPTIONS  more options of train, for example --set training.precision=float16
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?give a folder for the results}" && cd "$1" && pwd)
lava=${MLXLAVA:-.venv/bin/mlxlava}
limit=${MINUTES:+--minutes $MINUTES}

if [ -e "$out/run" ]; then
  "$lava" train --resume -o "$out/run" $limit
else
  # shellcheck disable=SC2086  # several options each
  "$lava" train --recipe lava-256x128 -o "$out/run" $limit ${OPTIONS:-}
fi
"$lava" export "$out/run" -o "$out/lava" --half
"$lava" score "$out/lava" --json -o "$out/score.png" > "$out/lava.json"
"$lava" export "$out/run" -o "$out/lava" --half --score "$out/lava.json"
echo "the lamp: mlxlava loop --weights $out/lava"
