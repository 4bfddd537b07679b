#!/bin/sh
# The whole recipe on a CPU, small: scenes -> frozen encoder -> teacher -> pseudo-labels -> students -> the ablation table.
#
#   depth_model/recipes/cpu.sh [--pairs DIR] [--photos DIR] [--out runs/cpu] [--scale PERCENT]
#
# Labelled: 600 scenes. Unlabelled: 1,500 other scenes without their depth, or the photos of DIR. Measured: 200 further
# scenes, and the first 240 pairs of DIR when given. DINOv2 cannot be had offline: the frozen encoder is one of the same
# size that learns the scenes' class labels here. --scale shortens every training. Each step goes on where it stopped.
set -eu
pairs="" photos="" out=runs/cpu scale=100
while [ $# -gt 0 ]; do
    case "$1" in
        --pairs) pairs=$2 ;;
        --photos) photos=$2 ;;
        --out) out=$2 ;;
        --scale) scale=$2 ;;
        *) echo "cpu.sh: unknown flag $1; known are --pairs, --photos, --out, --scale" >&2; exit 2 ;;
    esac
    shift 2
done
part() { echo $(( $1 * scale / 100 > 4 ? $1 * scale / 100 : 4 )); }
python=$(command -v python || command -v python3)

scenes() { depth-control scenes --out "$out/$1" --count "$(part "$2")" --seed "$3" --size 96 --workers 2; }
scenes labeled 600 1
scenes unseen 200 3
if [ -z "$photos" ]; then
    scenes unlabeled 1500 2
    photos="$out/unlabeled"
fi

common="--preset tiny --version v1 --lower-bound 84 --least-crop 0.7 --optimizer muon --encoder-lr 2e-3 --decoder-lr 2e-3
    --warmup 20 --tracker= --save-every 100 --log-every 20 --validate-every 100000"
encoder="$out/encoder/model"
"$python" -m depth_model.pretrain_encoder --scenes "$out/labeled" --out "$out/encoder" --lower-bound 84 --steps "$(part 120)"

# Every run sees as many labelled images, and the students begin at the frozen encoder, as the paper's at DINOv2.
teach() { depth-control train-teacher $common --encoder "$encoder" --scenes "$out/labeled" --batch 16 --steps "$(part 230)" "$@"; }
learn() {
    depth-control train-student $common --encoder "$encoder" --scenes "$out/labeled" --images "images=$photos" \
        --labels "$out/labels" --batch 8 --unlabeled-batch 16 --steps "$(part 230)" "$@"
}
teach --out "$out/teacher"
depth-control label --images "images=$photos" --teacher "$out/teacher/model" --out "$out/labels"
learn --out "$out/pseudo" --no-perturb --no-align
learn --out "$out/perturbed" --no-align
learn --out "$out/student"

measure() {
    depth-control evaluate --dataset "$2" --count 240 --out "$out/$1.json" \
        --model "$out/teacher/model" "$out/pseudo/model" "$out/perturbed/model" "$out/student/model"
}
measure unseen "$out/unseen"
[ -z "$pairs" ] || measure pairs "$pairs"
"$python" -m depth_model.recipes.ablation --out "$out/ablation.md" --results "$out/unseen.json" ${pairs:+"$out/pairs.json"}
