import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from depth_control import (
    DepthStableDiffusionControlNetImg2ImgPipeline,
    DepthStableDiffusionControlNetPipeline,
    to_control,
    with_depth,
)
from depth_control.hooks import always_compute, skip_at_zero_scale
from depth_control.pipelines import picture_size
from depth_model import DepthEstimator, DepthMap
from depth_model.errors import InputError
from tests import tiny

PHOTO = Image.fromarray((np.random.default_rng(0).random((48, 64, 3)) * 255).astype(np.uint8))
DEPTH = np.add.outer(np.linspace(0, 1, 24), np.linspace(0, 1, 32)).astype(np.float32)


@pytest.fixture(params=["tiny", "kl"])
def pipe(request):
    model, processor = tiny.estimator()
    made = DepthStableDiffusionControlNetPipeline.from_pipe(
        tiny.pipeline(request.param), depth_estimator=model, depth_processor=processor
    )
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe, *args, **kwargs):
    """Two steps from fixed noise, as an array [N, H, W, 3]."""
    kwargs = {"num_inference_steps": 2, "output_type": "np", "generator": torch.manual_seed(0)} | kwargs
    return pipe(*args, **kwargs)


def count_calls(module):
    """A list that grows by one whenever the network itself is computed."""
    calls = []
    module.controlnet_cond_embedding.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_photo_gives_depth_condition_and_picture(pipe):
    out = run(pipe, "red clay", depth_source=PHOTO)
    depth = DepthEstimator(pipe.depth_estimator, pipe.depth_processor)(PHOTO)
    np.testing.assert_allclose(out.depth.values, depth.values, rtol=1e-5)
    height, width = out.images[0].shape[:2]
    assert width / height == pytest.approx(64 / 48, abs=0.15)
    assert out.control.shape == (height, width)
    assert 0 <= out.control.min() < out.control.max() <= 1


def test_depth_is_the_condition_that_the_stock_class_would_get(pipe):
    stock = StableDiffusionControlNetPipeline(
        **{k: v for k, v in pipe.components.items() if not k.startswith("depth")}, requires_safety_checker=False
    )
    control = torch.from_numpy(to_control(DEPTH, gamma=2.0)).expand(1, 3, -1, -1)
    expected = run(stock, "red", image=control).images
    ours = run(pipe, "red", depth=DEPTH, gamma=2.0, height=24, width=32)
    np.testing.assert_array_equal(ours.images, expected)
    np.testing.assert_array_equal(run(pipe, "red", image=control).images, expected)
    np.testing.assert_array_equal(run(pipe, "red", control).images, expected)
    assert "depth" not in run(pipe, "red", control)


def test_different_depth_gives_different_pictures(pipe):
    one = run(pipe, "red", depth=DEPTH).images
    assert np.abs(one - run(pipe, "red", depth=DEPTH[::-1].copy()).images).max() > 1e-4
    sixteen = Image.fromarray(np.round(DEPTH / 2 * 65535).astype(np.uint16))
    np.testing.assert_allclose(run(pipe, "red", depth=sixteen).images, one, atol=1e-2)
    np.testing.assert_array_equal(run(pipe, "red", depth=DepthMap(DEPTH, "disparity")).images, one)


def test_lists_and_several_pictures_for_each_prompt(pipe):
    out = run(pipe, ["red", "blue"], depth=[DEPTH, DEPTH[::-1]], num_images_per_prompt=2)
    assert len(out.images) == 4 and len(out.depth) == len(out.control) == 2
    out = run(pipe, ["red", "blue"], depth_source=PHOTO)
    assert len(out.images) == 2 and out.control.ndim == 2
    with pytest.raises(InputError, match="2 .* 3"):
        run(pipe, ["red", "blue", "ice"], depth=[DEPTH, DEPTH])
    with pytest.raises(InputError, match="same shape"):
        run(pipe, ["red", "blue"], depth=[DEPTH, DEPTH.T])


def test_tuple_output_size_and_callbacks(pipe):
    steps = []

    def note(pipe, step, timestep, tensors):
        steps.append(tensors["latents"].shape)
        return tensors

    images, nsfw = run(pipe, "red", depth=DEPTH, return_dict=False, height=40, callback_on_step_end=note)
    assert images.shape[1:3] == (40, 56) and nsfw is None and len(steps) == 2
    with pytest.raises(InputError, match="width"):
        run(pipe, "red", depth=DEPTH, width=33)


def test_image_to_image_starts_from_the_photo(pipe):
    img2img = DepthStableDiffusionControlNetImg2ImgPipeline.from_pipe(pipe)
    assert img2img.unet is pipe.unet and img2img.vae is pipe.vae and img2img.depth_estimator is pipe.depth_estimator
    one = run(img2img, "red", depth_source=PHOTO)
    # At zero depth influence and few steps the start picture is what is left to see.
    dark = Image.new("RGB", PHOTO.size)
    other = run(img2img, "red", image=dark, depth_source=PHOTO)
    assert one.images.shape == other.images.shape and np.abs(one.images - other.images).max() > 1e-3
    np.testing.assert_array_equal(one.control, other.control)
    with pytest.raises(InputError, match="image="):
        run(img2img, "red", depth=DEPTH)


def test_folder_round_trip_and_stock_classes(pipe, tmp_path):
    expected = run(pipe, "red", depth_source=PHOTO)
    pipe.save_pretrained(tmp_path)
    again = DepthStableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(run(again, "red", depth_source=PHOTO).images, expected.images)
    control = torch.from_numpy(expected.control).expand(1, 3, -1, -1)
    for stock in (StableDiffusionControlNetPipeline, StableDiffusionControlNetImg2ImgPipeline):
        loaded = stock.from_pretrained(tmp_path)
        assert not hasattr(loaded, "depth_estimator")
    loaded = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    np.testing.assert_array_equal(run(loaded, "red", image=control).images, expected.images)
    without = DepthStableDiffusionControlNetPipeline.from_pretrained(tmp_path, depth_estimator=None)
    with pytest.raises(InputError, match="depth_estimator"):
        run(without, "red", depth_source=PHOTO)


def test_from_pipe_shares_weights_and_keeps_the_dtype(pipe):
    half = pipe.to(torch.bfloat16)
    made = DepthStableDiffusionControlNetPipeline.from_pipe(half)
    assert made.unet is pipe.unet and pipe.unet.dtype == torch.bfloat16
    back = StableDiffusionControlNetPipeline.from_pipe(made, dtype=made.dtype, vae=made.vae)
    assert type(back) is StableDiffusionControlNetPipeline and back.unet is pipe.unet
    assert np.isfinite(run(made, "red", depth_source=PHOTO).images).all()


def test_generated_classes():
    made = with_depth(StableDiffusionControlNetPipeline)
    assert made is DepthStableDiffusionControlNetPipeline and issubclass(made, StableDiffusionControlNetPipeline)
    assert pickle.loads(pickle.dumps(made)) is made
    assert made.model_cpu_offload_seq.startswith("depth_estimator->")
    with pytest.raises(InputError, match="ControlNet"):
        with_depth(StableDiffusionPipeline)


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": DEPTH, "depth_source": PHOTO},
        {"depth_source": PHOTO, "depth_kind": "metric"},
        {"depth_source": "no.jpg"},
    ],
)
def test_contradictions_are_refused(pipe, arguments):
    with pytest.raises(InputError):
        run(pipe, "red", **arguments)
    with pytest.raises(InputError, match="condition"):
        run(pipe, "red", depth=DEPTH, image=PHOTO)


@pytest.mark.parametrize(
    "options", [{}, {"guess_mode": True}, {"num_images_per_prompt": 2, "guess_mode": True}, {"guidance_scale": 0.0}]
)
def test_skipped_steps_are_bit_identical(pipe, options):
    options |= {"depth": DEPTH, "num_inference_steps": 4, "control_guidance_end": 0.5}
    calls = count_calls(pipe.controlnet)
    skipped = run(pipe, "red", **options).images
    assert len(calls) == 2
    always_compute(pipe.controlnet)
    np.testing.assert_array_equal(run(pipe, "red", **options).images, skipped)
    assert len(calls) == 6
    skip_at_zero_scale(pipe.controlnet)
    skip_at_zero_scale(pipe.controlnet)
    run(pipe, "red", **options | {"controlnet_conditioning_scale": 0.0})
    assert len(calls) == 6


def test_each_of_several_controlnets_is_skipped_on_its_own(pipe):
    downsamplings = 2 if pipe.vae_scale_factor == 4 else 3
    nets = [pipe.controlnet, tiny.controlnet(1, downsamplings)]
    parts = pipe.components | {"controlnet": MultiControlNetModel(nets)}
    multi = DepthStableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    multi.set_progress_bar_config(disable=True)
    calls = [count_calls(net) for net in nets]
    options = {"depth": DEPTH, "image": [None, PHOTO], "controlnet_conditioning_scale": [1.0, 0.0]}
    one = run(multi, "red", **options).images
    assert [len(c) for c in calls] == [2, 0]
    np.testing.assert_array_equal(one, run(pipe, "red", depth=DEPTH).images)
    always_compute(multi.controlnet)
    np.testing.assert_array_equal(run(multi, "red", **options).images, one)
    both = run(multi, "red", depth=DEPTH).images
    assert np.abs(both - one).max() > 1e-4


def test_a_hooked_controlnet_saves_plain_weights(pipe, tmp_path):
    pipe.controlnet.save_pretrained(tmp_path)
    again = ControlNetModel.from_pretrained(tmp_path)
    assert again.state_dict().keys() == pipe.controlnet.state_dict().keys()


@pytest.mark.parametrize(
    ("photo", "native", "expected"),
    [
        ((480, 640), 512, (440, 592)),
        ((512, 512), 512, (512, 512)),
        ((100, 1000), 512, (256, 1024)),
        ((1000, 100), 512, (1024, 256)),
        ((480, 640), 128, (128, 168)),
        ((1, 5000), 128, (128, 512)),
        ((480, 640), 32, (32, 40)),
    ],
)
def test_pictures_keep_the_aspect_and_the_native_area(photo, native, expected):
    assert picture_size(*photo, native) == expected


@pytest.mark.parametrize(
    "kind", [StableDiffusionXLControlNetPipeline, StableDiffusionXLControlNetImg2ImgPipeline], ids=["text", "image"]
)
def test_xl_takes_photos_and_depth_too(kind):
    model, processor = tiny.estimator()
    pipe = with_depth(kind).from_pipe(tiny.xl_pipeline(), depth_estimator=model, depth_processor=processor)
    pipe.set_progress_bar_config(disable=True)
    draws = {"num_inference_steps": 2, "output_type": "np"} | ({"image": PHOTO} if "Img2Img" in kind.__name__ else {})
    one = pipe("red clay", depth_source=PHOTO, generator=torch.manual_seed(0), **draws)
    other = pipe("red clay", depth=1 - one.control, generator=torch.manual_seed(0), **draws)
    assert one.images[0].shape == (*one.control.shape, 3) and np.abs(one.images[0] - other.images[0]).max() > 1e-3
    assert pickle.loads(pickle.dumps(with_depth(kind))) is with_depth(kind)
