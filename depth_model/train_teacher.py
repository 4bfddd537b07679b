"""Supervised training of a depth model on labelled images: the teacher of V1 section 3.1.

    depth-control train-teacher --encoder facebook/dinov2-large --preset large --labeled tartanair=DIR irs=DIR ...
    accelerate launch -m depth_model.train_teacher --config teacher.yaml

The same command goes on from the newest checkpoint. What a step sees depends on (seed, step) alone, not on the number
of processes.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from depth_model import checkpoint
from depth_model.build import build_network, build_optimizer, labeled_samples, labeled_sets, released
from depth_model.config import dump, run_module
from depth_model.data.loader import micro_batches, to_device
from depth_model.data.order import batches
from depth_model.errors import InputError
from depth_model.losses import affine_invariant_loss, gradient_matching_loss, least_squares_loss
from depth_model.modeling import initialise_patch_embedding
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

LOSSES = {"median": affine_invariant_loss, "least-squares": least_squares_loss}


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Trains a depth model on labelled images: the teacher, or a small model from scratch."""

    out: Path = Path("runs/teacher")
    """Run folder: config, log, curves, checkpoints and the finished model in `model/`."""
    batch: int = 32
    """Images in a global batch, over all processes."""


def main(config: Config) -> None:
    """Runs the stage.

    Raises:
        InputError: settings or folders that cannot be used.
        RunError: a full disk, a lost process, or gradients that stay NaN or infinite.
    """
    check(config, ("batch",))
    sets, measured = labeled_sets(config)
    if not sets:
        raise InputError("nothing to train on: give --labeled NAME=DIR, --pairs DIR or --scenes DIR")
    found = checkpoint.find_checkpoint(config.out / "checkpoints", config.resume)
    accelerator = make_accelerator(config.out, config.precision, config.tracker, config.peer_timeout)
    samples = labeled_samples(config, sets)
    network = build_network(config)
    if config.init is None and config.encoder is None and found is None:
        first = next(batches(len(samples), 256, config.seed, 0, 1))
        initialise_patch_embedding(network, [samples[key]["pixel_values"] for key in first])
    network = network.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, network)
    ema = Ema(network, config.ema)
    step, state = resume_run(found, config, FREE, network, ema, optimizer)
    sizes = same_data(state, {"labelled": len(samples)})
    model, optimizer = accelerator.prepare(network, optimizer)
    loader = micro_batches(
        samples, config.batch, accelerator, config.seed, step, config.steps, config.accumulate, config.workers
    )
    if accelerator.is_main_process:
        log = RunLog(config.out, step)
        dump(config, config.out / "config.yaml")
    accelerator.init_trackers("depth_model")

    with Watch(config.out, accelerator, state.get("skipped")) as watch:
        while step < config.steps and not watch.stop:
            # ---- one training step
            set_learning_rates(optimizer, learning_rate_factor(step, config.steps, config.warmup))
            total = torch.zeros((), device=accelerator.device)
            for part in range(config.accumulate):
                batch = to_device(watch.saw(next(loader)), accelerator.device)
                disparity, valid = batch["disparity"], batch["valid"]
                pixels = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
                with accelerator.no_sync(model) if part + 1 < config.accumulate else nullcontext():
                    with accelerator.autocast():
                        prediction = model(pixel_values=pixels).predicted_depth
                    prediction = prediction.float()
                    loss = LOSSES[config.loss](prediction, disparity, valid)
                    if config.gradient_weight:
                        matching = gradient_matching_loss(prediction, disparity, valid)
                        loss = loss + config.gradient_weight * matching
                    accelerator.backward(loss / config.accumulate)
                total += loss.detach() / config.accumulate
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            shown = watch.exchange(total)
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
            if not accelerator.is_main_process:
                continue
            if due[0]:
                log.progress(step, config.steps, config.batch, loss=shown, gradient_norm=norm.item(), skipped=skipped)
                accelerator.log(log.rows[-1], step)
            if due[1] and measured:
                numbers = validate(released(config, network, ema), measured, config.validation_count, config.out)
                log.write(step, **numbers)
                accelerator.log(numbers, step)
                log.plot(config.out / "curves.png")
            if due[2] or watch.stop:
                save_run(
                    config.out / "checkpoints",
                    step,
                    config,
                    network,
                    ema,
                    optimizer,
                    {"skipped": watch.skipped, **sizes},
                )
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
    run_module(Config, main, "depth_model.train_teacher")
