#!/bin/sh
# The packaged depth model: scenes -> four supervised stages -> a folder that DepthEstimator opens.
#
#   depth_model/recipes/embedded.sh [--pairs DIR] [--out runs] [--processes 2] [--install DIR]
#
# DIR holds RGB-D pairs with an index.json; the pairs of source `nyuv2train` are used, all but the last 79, which measure.
# Without --pairs it trains on scenes alone, and the weights carry no third-party data. Every step goes on where it
# stopped when the same line is run again. Seen on two cores: scenes 10 minutes; stages 13, 10, 53 and 25.
set -eu
pairs="" out=runs processes=2 install=""
while [ $# -gt 0 ]; do
    case "$1" in
        --pairs) pairs=$2 ;;
        --out) out=$2 ;;
        --processes) processes=$2 ;;
        --install) install=$2 ;;
        *) echo "embedded.sh: unknown flag $1; known are --pairs, --out, --processes, --install" >&2; exit 2 ;;
    esac
    shift 2
done

depth-control scenes --out "$out/scenes" --count 8000 --seed 1000 --size 128 --aspects 1 1.3333 1 1.3333 0.75 1 --workers 2

# "$processes" processes of one thread each do more than one of several threads.
train() {
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node "$processes" --no_python depth-control train-teacher \
        --preset tiny --version v2 --scenes "$out/scenes" \
        ${pairs:+--pairs "$pairs" --pairs-source nyuv2train --pairs-holdout 79 --validation-count 79} \
        --batch 32 --weight-decay 0.02 --optimizer muon --ema 0.999 --memory 4 --save-every 100 --log-every 10 \
        --validate-every 250 "$@"
}
few="--pairs-repeat 10 --aspects 1.3333 1.3333 1.3333 1 1 0.75 1.7778 --jitter 0.25 --encoder-lr 3e-3 --decoder-lr 3e-3"
many="--pairs-repeat 6 --aspects 1.3333 1 1 1.3333 0.75 1.7778 --jitter 0.6 --least-crop 0.65"
# A smaller input first: more images in the same time. Strong colours later: weak ones made depth depend on hues.
train $few --out "$out/depth84" --lower-bound 84 --steps 1200 --least-crop 0.6 --warmup 60 --seed 1
train $few --out "$out/depth112" --init "$out/depth84/model" --steps 600 --least-crop 0.7 --warmup 20 --seed 2
train $many --out "$out/depth112b" --init "$out/depth112/model" --steps 2200 --warmup 40 --seed 3 \
    --encoder-lr 3e-3 --decoder-lr 3e-3 --gradient-weight 0.5
train $many --out "$out/depth" --init "$out/depth112b/model" --lower-bound 154 --steps 560 --warmup 20 --seed 4 \
    --encoder-lr 2e-3 --decoder-lr 2e-3

if [ -n "$install" ]; then
    python -c "import sys; from depth_model import DepthEstimator
DepthEstimator.from_pretrained(sys.argv[1], dtype='float16').save_pretrained(sys.argv[2])" "$out/depth/model" "$install"
fi
