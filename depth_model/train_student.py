"""Training of the student on labelled and pseudo-labelled images (V1 sections 3.2 and 3.3).

    depth-control train-student --encoder facebook/dinov2-small --preset small --labeled tartanair=DIR ... \\
        --images sa1b=DIR --labels runs/labels
    accelerate launch -m depth_model.train_student --config vits.yaml

Each step has labelled images, mirrored only, and twice as many unlabelled ones: the teacher labelled them clean, the
student sees them strongly perturbed, and its features stay close to those of the frozen encoder it began with. The same
command goes on from the newest checkpoint.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from depth_model import checkpoint
from depth_model.build import build_network, build_optimizer, crop_sizes, labeled_samples, labeled_sets, released
from depth_model.config import dump, run_module
from depth_model.data.loader import micro_batches, to_device
from depth_model.data.pseudo import PseudoLabeled
from depth_model.data.sample import PseudoLabeledSamples
from depth_model.encoder import Student, frozen_features, load_encoder
from depth_model.errors import InputError
from depth_model.losses import (
    affine_invariant_loss,
    cutmix_affine_invariant_loss,
    cutmix_gradient_matching_loss,
    feature_alignment_loss,
    gradient_matching_loss,
)
from depth_model.run_log import RunLog
from depth_model.training import (
    Ema,
    learning_rate_factor,
    make_accelerator,
    resume_run,
    same_data,
    save_run,
    set_learning_rates,
)
from depth_model.training_config import FREE, TrainingConfig, check
from depth_model.validation import validate
from depth_model.watch import TERMINATED, Watch


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Trains a student on labelled images and on a teacher's labels of unlabelled ones."""

    out: Path = Path("runs/student")
    """Run folder: config, log, curves, checkpoints and the finished model in `model/`."""
    images: str = ""
    """The unlabelled images as NAME=DIR, just as they were given to `label`."""
    labels: Path = Path("runs/labels")
    """Folder of the label shards."""
    most_disagreement: float | None = None
    """Leave out labels that differ more from those of the mirrored image; needs labels made with --flip."""
    batch: int = 8
    """Labelled images in a global batch, over all processes; 0 trains on pseudo-labels alone, as V2 does."""
    unlabeled_batch: int = 16
    """Unlabelled images in a global batch; the paper has two for each labelled one."""
    perturb: bool = True
    """Strong colour perturbations and CutMix on the unlabelled images."""
    cutmix: float = 0.5
    """Probability of CutMix."""
    discard: float = 0.0
    """Share of each pseudo-labelled image's pixels, those of the largest loss, that is ignored: 0.1 in V2."""
    align: bool = True
    """Keep the features of unlabelled images close to the frozen encoder's; needs --encoder."""
    tolerance: float = 0.85
    """Cosine similarity above which a patch's features are close enough."""


def _check(config: Config) -> None:
    check(config, ("unlabeled_batch",))
    if config.batch < 0:
        raise InputError(f"--batch must be at least 0, got {config.batch}")
    if not config.images:
        raise InputError("--images is missing: give the images as they were given to depth-control label")
    if config.align and config.encoder is None:
        raise InputError("--encoder is missing: the features are kept close to it; or give --no-align")
    if not 0 <= config.discard < 1 or not 0 <= config.cutmix <= 1:
        raise InputError("--discard must be at least 0 and below 1, --cutmix between 0 and 1")
    if config.loss != "median":
        raise InputError("--loss: pseudo-labels are compared by median and mean deviation; leave the flag out")


def losses(config: Config, labeled: dict | None, unlabeled: dict, disparity: Tensor) -> dict[str, Tensor]:
    """L_l and L_u of V1 eq. 1 to 8, with gradient matching added to each when it has a weight (V2 section 5.2).

    Args:
        labeled, unlabeled: batches, on the device. disparity: the student's [B, h, w] of both, labelled images first.
    """
    terms, count = {}, 0 if labeled is None else len(labeled["disparity"])
    if labeled is not None:
        target, valid = labeled["disparity"], labeled["valid"]
        terms["labeled"] = affine_invariant_loss(disparity[:count], target, valid)
        if config.gradient_weight:
            matching = gradient_matching_loss(disparity[:count], target, valid)
            terms["labeled"] = terms["labeled"] + config.gradient_weight * matching
    mixed = disparity[count:], unlabeled["target_a"], unlabeled["target_b"], unlabeled["mask"]
    terms["unlabeled"] = cutmix_affine_invariant_loss(*mixed, discard=config.discard)
    if config.gradient_weight:
        terms["unlabeled"] = terms["unlabeled"] + config.gradient_weight * cutmix_gradient_matching_loss(*mixed)
    return terms


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings or folders that cannot be used.
        RunError: a full disk, a lost process, or gradients that stay NaN or infinite.
    """
    _check(config)
    sets, measured = labeled_sets(config)
    if config.batch and not sets:
        raise InputError("no labelled images: give --labeled NAME=DIR, --pairs DIR or --scenes DIR, or --batch 0")
    pseudo = PseudoLabeled(config.images, config.labels, config.most_disagreement)
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    accelerator = make_accelerator(config.out, config.precision, config.tracker, config.peer_timeout)
    device = accelerator.device
    network = build_network(config)
    frozen = load_encoder(config.encoder).to(device) if config.align else None
    student = Student(network, (frozen or network.backbone).config.hidden_size)
    student = student.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, network, student.projection)
    ema = Ema(network, config.ema)
    step, state = resume_run(found, config, FREE, student, ema, optimizer)
    model, optimizer = accelerator.prepare(student, optimizer)
    parts = config.accumulate, config.workers
    unlabeled_samples = PseudoLabeledSamples(
        pseudo, crop_sizes(config), config.seed, config.least_crop, config.perturb, config.cutmix
    )
    unlabeled_loader = micro_batches(
        unlabeled_samples, config.unlabeled_batch, accelerator, config.seed + 1, step, config.steps, *parts
    )
    images = {"unlabelled": len(unlabeled_samples)}
    if config.batch:
        samples = labeled_samples(config, sets)
        labeled_loader = micro_batches(samples, config.batch, accelerator, config.seed, step, config.steps, *parts)
        images["labelled"] = len(samples)
    same_data(state, images)
    if accelerator.is_main_process:
        log = RunLog(config.out, step)
        dump(config, config.out / "config.yaml")
    accelerator.init_trackers("depth_model")

    with Watch(config.out, accelerator, state.get("skipped")) as watch:
        while step < config.steps and not watch.stop:
            # ---- one training step
            set_learning_rates(optimizer, learning_rate_factor(step, config.steps, config.warmup))
            shown: dict[str, Tensor] = {}
            for part in range(config.accumulate):
                labeled = to_device(watch.saw(next(labeled_loader)), device) if config.batch else None
                unlabeled = to_device(watch.saw(next(unlabeled_loader)), device)
                pixels = [batch["pixel_values"] for batch in (labeled, unlabeled) if batch]
                pixels = torch.cat(pixels).contiguous(memory_format=torch.channels_last)
                with accelerator.no_sync(model) if part + 1 < config.accumulate else nullcontext():
                    with accelerator.autocast():
                        disparity, features = model(pixels)
                        close_to = frozen_features(frozen, unlabeled["pixel_values"]) if frozen else None
                    terms = losses(config, labeled, unlabeled, disparity.float())
                    if frozen:
                        own = features[-len(close_to) :].float()
                        terms["features"] = feature_alignment_loss(own, close_to.float(), config.tolerance)
                    # The plain average of the terms (V1 section 3.3).
                    loss = sum(terms.values()) / len(terms)
                    accelerator.backward(loss / config.accumulate)
                for name, term in (terms | {"loss": loss}).items():
                    shown[name] = shown.get(name, 0) + term.detach() / config.accumulate
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            watch.exchange(shown["loss"])
            if watch.finite(norm):
                optimizer.step()
                ema.update(network, step)
            optimizer.zero_grad(set_to_none=True)
            step += 1
            # ---- once in a while: log, validate, save
            last = step == config.steps
            due = [step % every == 0 or last for every in (config.log_every, config.validate_every, config.save_every)]
            if not any(due) and not watch.stop:
                continue
            skipped = watch.collect()
            means = {name: accelerator.reduce(term, "mean").item() for name, term in shown.items()}
            if not accelerator.is_main_process:
                continue
            if due[0]:
                shown_images = config.batch + config.unlabeled_batch
                log.progress(step, config.steps, shown_images, **means, gradient_norm=norm.item(), skipped=skipped)
                accelerator.log(log.rows[-1], step)
            if due[1] and measured:
                numbers = validate(released(config, network, ema), measured, config.validation_count, config.out)
                log.write(step, **numbers)
                accelerator.log(numbers, step)
                log.plot(config.out / "curves.png")
            if due[2] or watch.stop:
                more = {"skipped": watch.skipped, **images}
                save_run(config.out / "checkpoints", step, config, student, ema, optimizer, more)
    accelerator.end_training()
    if watch.stop and step < config.steps:
        print(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on", flush=True)
        raise SystemExit(TERMINATED)
    if accelerator.is_main_process:
        released(config, network, ema).save_pretrained(config.out / "model")
        log.plot(config.out / "curves.png")
        for problem, count in watch.skipped.items():
            print(f"skipped {count} times: {problem}", flush=True)


if __name__ == "__main__":
    run_module(Config, main, "depth_model.train_student")
