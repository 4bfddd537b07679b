#!/bin/sh
# The packaged image models: autoencoder -> base and ControlNet, trained together, on exact and then on estimated depth.
#
#   train_controlnet/recipes/embedded.sh [--out runs] [--install DIR]
#
# Needs OUT/scenes and OUT/depth/model of depth_model/recipes/embedded.sh. No third-party pictures enter here. Every step
# goes on where it stopped when the same line is run again.
set -eu
out=runs install=""
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out=$2 ;;
        --install) install=$2 ;;
        *) echo "embedded.sh: unknown flag $1; known are --out, --install" >&2; exit 2 ;;
    esac
    shift 2
done

vae="$out/autoencoder/model"
prepare() {
    depth-control prepare-controlnet --scenes "$out/scenes" --vae "$vae" "$@"
}
train() {
    depth-control train-base --vae "$vae" --batch 16 --save-every 100 --log-every 20 "$@"
}
depth-control train-autoencoder --images "$out/scenes" --out "$out/autoencoder"
# Base and ControlNet learn geometry from the scenes' true depth, then from what our estimator makes of them.
prepare --depth-model exact --out "$out/cache-exact"
train --cache "$out/cache-exact" --out "$out/base-exact" --steps 2200 --cooldown 0 --warmup 100
prepare --depth-model "$out/depth/model" --out "$out/cache"
train --cache "$out/cache" --out "$out/base" --init "$out/base-exact/model" --steps 2200 --warmup 20 --cooldown 0.6 --coarsest 1

if [ -n "$install" ]; then
    mkdir -p "$install"
    cp -r "$out/base/model/." "$install/"
    echo '{"guidance_scale": 1.5}' > "$install/generate.json"
fi
