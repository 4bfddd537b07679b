#!/bin/sh
# The packaged image models: autoencoder -> base with a joint ControlNet -> ControlNet on the frozen base.
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
depth-control train-autoencoder --images "$out/scenes" --out "$out/autoencoder"
# The base learns geometry from the scenes' true depth, the ControlNet then from what our estimator makes of them.
prepare --depth-model exact --out "$out/cache-exact"
depth-control train-base --cache "$out/cache-exact" --vae "$vae" --out "$out/base" --steps 2000
prepare --depth-model "$out/depth/model" --out "$out/cache"
depth-control train-controlnet --base "$out/base/model" --cache "$out/cache" --out "$out/controlnet" --steps 1000

if [ -n "$install" ]; then
    mkdir -p "$install"
    cp -r "$out/base/model/." "$install/"
    cp "$out/controlnet/model/"* "$install/controlnet/"
    echo '{"guidance_scale": 2.0}' > "$install/generate.json"
fi
