"""Writes docs/scale.md: what pseudo-labelling the paper's 62 million images takes. Arithmetic over the inputs below.

python docs/scale.py
"""

from pathlib import Path

from depth_model.modeling import PATCH, PRESETS, Preset

IMAGES = 62_000_000
PER_SHARD = 1000
SIZE = 518, 686  # network input of a 4:3 photo, the most common shape
TEACHERS = {"S": PRESETS["small"], "B": PRESETS["base"], "L": PRESETS["large"], "G": PRESETS["giant"]}
# The authors' network-only latencies at 518 x 518 on an A100, ms (Depth-Anything README); none is published for G.
A100_MS = {"S": 8, "B": 9, "L": 13}
# An A100's dense bfloat16 peak, and the share of it that large vision transformers reach in practice (a guess).
PEAK_TFLOPS, UTILISATION = 312, 0.4
# Measured: labels of the embedded teacher on photos, enlarged to 518 pixels, 16-bit PNG at zlib effort 1.
LABEL_BYTES_PER_PIXEL = 1.21
# Measured on 640 x 480 JPEG of quality 90; sets differ: 25 to 500 KB.
IMAGE_BYTES = 100_000
# Measured on one core of a server: decoding, filters and hashing of a 640 x 480 JPEG, ms.
COLLECT_MS = 5.0
ROW_BYTES, INDEX_BYTES, MARKER_BYTES, TAR_HEADER = 90, 330, 1000, 768


def operations(preset: Preset) -> float:
    """Floating-point operations of one forward at SIZE, two for each multiply-add; normalisations are left out."""
    patches, d, f = SIZE[0] // PATCH * (SIZE[1] // PATCH), preset.hidden, preset.fusion
    tokens, hidden = patches + 1, (int(8 * d / 3) + 7) // 8 * 8
    feed_forward = 3 * d * hidden if preset.swiglu else 8 * d * d
    encoder = preset.layers * (2 * tokens * (4 * d * d + feed_forward) + 4 * tokens**2 * d)
    c, pixels = preset.neck, [16 * patches, 4 * patches, patches, patches / 4]
    reassemble = sum(2 * patches * d * width for width in c)
    reassemble += 2 * patches * (16 * c[0] ** 2 + 4 * c[1] ** 2) + 2 * 9 * c[3] ** 2 * patches / 4
    neck = sum(2 * 9 * width * f * area for width, area in zip(c, pixels, strict=True))
    fusion = sum(2 * 9 * f * f * area * (2 if area == pixels[3] else 4) + 8 * f * f * area for area in pixels)
    head = 2 * 9 * f * (f // 2) * 64 * patches + 2 * 9 * (f // 2) * 32 * PATCH**2 * patches
    return encoder + reassemble + neck + fusion + head


def page() -> str:
    """The page as Markdown."""
    pixels, shards = SIZE[0] * SIZE[1], -(-IMAGES // PER_SHARD)
    label = LABEL_BYTES_PER_PIXEL * pixels
    rows = []
    for size, preset in TEACHERS.items():
        tflop = operations(preset) / 1e12
        counted = tflop / (PEAK_TFLOPS * UTILISATION) * IMAGES / 3600
        latency = A100_MS[size] / 1000 * IMAGES / 3600 * pixels / 518**2 if size in A100_MS else None
        published = f"{latency:,.0f}" if latency else "not published"
        slowest = max(counted, latency or 0)
        rows.append(f"| {size} | {tflop:.2f} | {counted:,.0f} | {published} | {slowest / 64 / 24:.1f} |")
    terabytes = {
        "images, original JPEG bytes": (IMAGE_BYTES + TAR_HEADER) * IMAGES,
        "labels, 16-bit PNG": (label + TAR_HEADER) * IMAGES,
        "indexes of the images": INDEX_BYTES * IMAGES,
        "tables of the labels": ROW_BYTES * IMAGES,
        "provenance": MARKER_BYTES * shards,
    }
    stored = [f"| {name} | {size / 1e12:.2f} |" for name, size in terabytes.items()]
    table = "\n".join(rows)
    return f"""# What 62 million images take

Every number on this page is an **estimate**, computed by `docs/scale.py` from the inputs it names; nothing
here was run at this scale. Change an input and run `python docs/scale.py` again.

## GPU-hours of the teacher

Images of 4:3, {SIZE[1]} x {SIZE[0]} at the network, one forward each (`--flip` doubles all of it). "By
operations" counts our networks' operations at {UTILISATION:.0%} of an A100's {PEAK_TFLOPS} TFLOPS in
bfloat16; "by latency" scales the authors' published milliseconds, network only, by the number of pixels.
The larger one is divided among 64 GPUs.

| teacher | TFLOP an image | A100-hours by operations | A100-hours by latency | days on 64 A100 |
|---|---|---|---|---|
{table}

Processors: decoding and encoding take about 50 ms of a core for an image, so a GPU that labels N images a
second needs about N / 20 cores beside it. `collect` takes about {COLLECT_MS:.0f} ms of a core for an image
of 640 x 480: {IMAGES * COLLECT_MS / 3.6e6:,.0f} core-hours, and 56 bytes of memory for each image kept
({IMAGES * 56 / 1e9:.1f} GB), as it compares every image with all before.

## Bytes and files

{shards:,} shards of {PER_SHARD:,} images; a label has about {label / 1000:.0f} KB ({LABEL_BYTES_PER_PIXEL}
bytes a pixel).

| what | TB |
|---|---|
{chr(10).join(stored)}
| **together** | **{sum(terabytes.values()) / 1e12:.1f}** |

Files: {2 * shards:,} for the images (shard, index) and {3 * shards:,} for the labels (shard, table,
provenance), and one more for each unit with images in quarantine. A killed unit loses at most the work on
{PER_SHARD:,} images.

## Commands

On a cluster whose machines see the same folders (Ray has no login of its own: keep it in a private network):

```bash
depth-control collect --images sa1b=data/SA-1B places365=data/places365 --evaluation data/eval --out shared/clean
ray start --head
ray start --address HEAD:6379
depth-control label --images tar=shared/clean --teacher shared/teacher --out shared/labels --dtype bfloat16 \\
    --batch 32 --threads 8 --runner ray --address auto --gpus 1 --cpus 8
depth-control status --labels shared/labels
depth-control verify --labels shared/labels
depth-control train-student --config vitl.yaml --images tar=shared/clean --labels shared/labels
```

`ray start --head` runs on the first machine, `ray start --address HEAD:6379` on each other. Two teachers
that share a GPU are `--gpus 0.5`. Without Ray, the same `label` command started on several machines shares
the work as well: units are taken in random order, and one that two engines make is the same bytes twice.
"""


if __name__ == "__main__":
    Path(__file__).with_name("scale.md").write_text(page(), encoding="utf-8")
