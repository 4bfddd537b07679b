#!/bin/sh
# A depth ControlNet for the packaged base, from 3,000 procedural scenes on a CPU: to see the whole chain, offline.
#
#   train_controlnet/recipes/controlnet.sh [--out runs]
#
# Every step goes on where it stopped when the same line is run again.
set -eu
out=runs
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2 ;;
        *) echo "controlnet.sh: unknown flag $1; known is --out" >&2; exit 2 ;;
    esac
    shift 2
done

depth-control scenes --out "$out/control-scenes" --count 3000 --seed 5000 --size 128 --workers 2
depth-control scenes --out "$out/control-held-out" --count 16 --seed 77 --size 128
depth-control prepare-controlnet --scenes "$out/control-scenes" --base embedded --out "$out/control-cache"
depth-control train-controlnet --base embedded --cache "$out/control-cache" --out "$out/control" \
    --batch 16 --steps 1500 --lr 5e-4 --warmup 20 --ema 0.99 --open-condition --timestep-shift 2 \
    --validation "$out/control-held-out" --validation-count 16 --guidance-scale 1 --validate-every 250 --proxy-every 50
