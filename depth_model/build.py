"""What the teacher's and the student's training build from their settings: data, network, optimiser, released model."""

import torch
from torch import nn
from transformers import DepthAnythingForDepthEstimation

from depth_model.data.labeled import PairFolder
from depth_model.data.readers import open_labeled
from depth_model.data.sample import LabeledReader, LabeledSamples
from depth_model.data.transforms import network_size
from depth_model.encoder import initialise_from_encoder, load_encoder
from depth_model.errors import InputError
from depth_model.estimator import DepthEstimator
from depth_model.model_folder import default_processor
from depth_model.modeling import PRESETS, build_model, initialise_encoder
from depth_model.muon import Muon, muon_groups
from depth_model.training import Ema, parameter_groups
from depth_model.training_config import TrainingConfig


def labeled_sets(config: TrainingConfig) -> tuple[list[tuple[LabeledReader, int]], list[PairFolder]]:
    """The labelled sets, each with its repeats, and the pair folders to measure on.

    Raises:
        InputError: a folder that cannot be used.
    """
    if config.pairs_holdout < 0 or config.pairs_repeat < 1:
        raise InputError("--pairs-holdout must be at least 0 and --pairs-repeat at least 1")
    chosen = [PairFolder(path, source=config.pairs_source) for path in config.pairs]
    for folder in chosen:
        if config.pairs_holdout >= len(folder):
            raise InputError(
                f"--pairs-holdout {config.pairs_holdout} leaves nothing of the {len(folder)} pairs of {folder.folder}"
            )
    sets = [(folder.part(0, len(folder) - config.pairs_holdout), config.pairs_repeat) for folder in chosen]
    sets += [(PairFolder(path, scenes=True), 1) for path in config.scenes]
    sets += [(open_labeled(spec), 1) for spec in config.labeled]
    if config.validation:
        return sets, [PairFolder(path) for path in config.validation]
    held_out = [folder.part(len(folder) - config.pairs_holdout, len(folder)) for folder in chosen]
    return sets, held_out if config.pairs_holdout else []


def crop_sizes(config: TrainingConfig) -> list[tuple[int, int]]:
    """(height, width) of the crops, one for each aspect."""
    lower_bound = config.lower_bound or PRESETS[config.preset].lower_bound
    return [network_size(round(1000 / aspect), 1000, lower_bound) for aspect in config.aspects]


def labeled_samples(config: TrainingConfig, sets: list[tuple[LabeledReader, int]]) -> LabeledSamples:
    """The labelled sets as training samples."""
    memory = int(config.memory * 2**30)
    return LabeledSamples(sets, crop_sizes(config), config.seed, config.least_crop, config.jitter, memory)


def build_network(config: TrainingConfig) -> DepthAnythingForDepthEstimation:
    """The network with the weights that training starts from: `init`, or `encoder` and a random decoder, or random.

    Raises:
        InputError: weights that cannot be loaded, or are of another size.
    """
    torch.manual_seed(config.seed)
    network = build_model(config.preset, config.version)
    if config.init is not None:
        weights = DepthEstimator.from_pretrained(config.init, device="cpu").model.state_dict()
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"--init {config.init}: not a model of --preset {config.preset}") from error
    elif config.encoder is not None:
        initialise_from_encoder(network, load_encoder(config.encoder))
    else:
        initialise_encoder(network)
    # Never reached by the forward pass: they would stay out of every gradient.
    network.backbone.embeddings.mask_token.requires_grad_(False)
    network.neck.fusion_stage.layers[0].residual_layer1.requires_grad_(False)
    if config.gradient_checkpointing:
        network.backbone.gradient_checkpointing_enable()
    return network.train()


def build_optimizer(
    config: TrainingConfig, network: DepthAnythingForDepthEstimation, *more: nn.Module
) -> torch.optim.Optimizer:
    """AdamW (V1 section 4.1) or Muon; `more` learns at the decoder's rate."""
    decoder = [p for part in (network.neck, network.head, *more) for p in part.parameters()]
    everything = nn.ModuleList([network, *more])
    rates = [(config.encoder_lr, network.backbone.parameters()), (config.decoder_lr, decoder)]
    groups = parameter_groups(rates, everything, config.weight_decay)
    return Muon(muon_groups(groups, everything)) if config.optimizer == "muon" else torch.optim.AdamW(groups)


def released(config: TrainingConfig, network: DepthAnythingForDepthEstimation, ema: Ema) -> DepthEstimator:
    """A copy of the network with the averaged weights, if there are any, on its device; it takes images as trained."""
    averaged = build_model(config.preset, config.version)
    averaged.load_state_dict(network.state_dict())
    ema.load_into(averaged)
    processor = default_processor(averaged.config, config.lower_bound)
    return DepthEstimator(averaged, processor, next(network.parameters()).device)
