#!/bin/sh
# The packaged image models: autoencoder -> base and ControlNet, trained together, on exact and then on estimated depth.
#
#   train_controlnet/recipes/embedded.sh [--out runs] [--processes 2] [--install DIR]
#
# Needs OUT/scenes and OUT/depth/model of depth_model/recipes/embedded.sh. No third-party pictures enter here. Every step
# goes on where it stopped when the same line is run again.
set -eu
out=runs processes=2 install=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2 ;;
        --processes) processes=$2 ;;
        --install) install=$2 ;;
        *) echo "embedded.sh: unknown flag $1; known are --out, --processes, --install" >&2; exit 2 ;;
    esac
    shift 2
done

vae="$out/autoencoder/model"
prepare() {
    depth-control prepare-controlnet --scenes "$out/scenes" --vae "$vae" "$@"
}
# "$processes" processes of one thread each do more than one of several threads.
train() {
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node "$processes" --no_python depth-control train-base \
        --vae "$vae" --save-every 100 --log-every 20 "$@"
}
depth-control train-autoencoder --images "$out/scenes" --out "$out/autoencoder"
# Base and ControlNet learn geometry from the scenes' true depth, then from what our estimator makes of them.
prepare --depth-model exact --out "$out/cache-exact"
train --cache "$out/cache-exact" --out "$out/base-exact" --batch 16 --steps 2200 --cooldown 0 --warmup 100
prepare --depth-model "$out/depth/model" --out "$out/cache"
estimated="--cache $out/cache --warmup 20 --coarsest 1"
train $estimated --out "$out/base-early" --init "$out/base-exact/model" --batch 16 --steps 2200 --cooldown 0.6
# Mostly noisy timesteps, where layout arises.
noisy="$estimated --batch 32 --lr 3.5e-3 --timestep-shift 2 --cooldown 0.7"
train $noisy --out "$out/base-middle" --init "$out/base-early/model" --steps 1700 --seed 6
train $noisy --out "$out/base" --init "$out/base-middle/model" --steps 3200 --seed 7 --control-gain 3.5

if [ -n "$install" ]; then
    mkdir -p "$install"
    cp -r "$out/base/model/." "$install/"
    echo '{"guidance_scale": 1.0}' > "$install/generate.json"
fi
