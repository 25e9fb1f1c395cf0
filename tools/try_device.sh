#!/usr/bin/env bash
# What is worth knowing of a device that the package has not met yet, in one go: is it right, does it train, how fast?
#
#     EXTRAS=cuda13 tools/try_device.sh OUT       # on Linux with an NVIDIA GPU; cuda12 for older drivers
#     EXTRAS= tools/try_device.sh OUT             # on a Mac
#     EXTRAS=cpu tools/try_device.sh OUT          # on any Linux, to try this script
#
# Under ten minutes on a GPU. Everything is done, also after something that fails; results are files in OUT.
#   PYTHON  the Python to use; python3 when not set
#   VENV    an environment that has the package already; one is made in OUT when not set
#   PEER    0 to leave PyTorch out (some GB)
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?give a folder for the results}" && cd "$1" && pwd)
extras=${EXTRAS-cuda13}
failed=

# Run a step with its output in a file and its seconds in a line.
step() {
  local name=$1 began=$SECONDS
  shift
  "$@" > "$out/$name.txt" 2>&1 && local how=ok || { how=FAILED; failed="$failed $name"; }
  echo "$name: $how, $((SECONDS - began)) s"
}

if [ -z "${VENV:-}" ]; then
  VENV=$out/venv
  step venv "${PYTHON:-python3}" -m venv "$VENV"
  step install "$VENV/bin/python" -m pip install --disable-pip-version-check ".[${extras:+$extras,}score]"
  [ "${PEER:-1}" = 0 ] || step peer "$VENV/bin/python" -m pip install --disable-pip-version-check "torch>=2.4"
fi
lava=$VENV/bin/mlxlava
step info "$lava" info
step check "$lava" check
step check-json "$lava" check --json
for recipe in lava duralava; do
  for size in 64 128; do
    # Ten steps, in which the discriminator joins in and its gradients are penalised; lamps of a minute draw quickly.
    step "train-$recipe-$size" "$lava" train -o "$out/run-$recipe-$size" --recipe "$recipe" --size "$size" --steps 10 \
      --set data.lamp_minutes=2
  done
done
step play "$lava" loop --weights "$out/run-lava-64" --seconds 2 -o "$out/learned.mp4"
step bench "$lava" bench --quick
[ -z "$failed" ] || {
  echo "failed:$failed"
  exit 1
}
