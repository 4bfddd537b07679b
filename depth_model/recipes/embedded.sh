#!/bin/sh
# The packaged depth model: scenes -> two supervised stages -> a folder that DepthEstimator opens.
#
#   depth_model/recipes/embedded.sh [--pairs DIR] [--out runs] [--install DIR]
#
# DIR holds RGB-D pairs with an index.json; the pairs of source `nyuv2train` are used, all but the last 79, which measure.
# Without --pairs it trains on scenes alone, and the weights carry no third-party data. Every step goes on where it
# stopped when the same line is run again. Seen: scenes 10 minutes on two cores; first stage 26, second 19 on one of them.
set -eu
pairs="" out=runs install=""
while [ $# -gt 0 ]; do
    case "$1" in
        --pairs) pairs=$2 ;;
        --out) out=$2 ;;
        --install) install=$2 ;;
        *) echo "embedded.sh: unknown flag $1; known are --pairs, --out, --install" >&2; exit 2 ;;
    esac
    shift 2
done

depth-control scenes --out "$out/scenes" --count 8000 --seed 1000 --size 128 --aspects 1 1.3333 1 1.3333 0.75 1 --workers 2

train() {
    depth-control train-teacher --preset tiny --version v2 --scenes "$out/scenes" \
        ${pairs:+--pairs "$pairs" --pairs-source nyuv2train --pairs-holdout 79 --pairs-repeat 10 --validation-count 79} \
        --batch 32 --aspects 1.3333 1.3333 1.3333 1 1 0.75 1.7778 --jitter 0.25 --weight-decay 0.02 \
        --optimizer muon --encoder-lr 3e-3 --decoder-lr 3e-3 --ema 0.999 --memory 4 --save-every 100 --log-every 10 --validate-every 125 "$@"
}
# A smaller input first: more images in the same time.
train --out "$out/depth84" --lower-bound 84 --steps 1200 --least-crop 0.6 --warmup 60 --seed 1
train --out "$out/depth" --init "$out/depth84/model" --steps 600 --least-crop 0.7 --warmup 20 --seed 2

if [ -n "$install" ]; then
    python -c "import sys; from depth_model import DepthEstimator
DepthEstimator.from_pretrained(sys.argv[1], dtype='float16').save_pretrained(sys.argv[2])" "$out/depth/model" "$install"
fi
