"""Text encoders that are trained: the host's own encoding, with gradients, and nothing left behind."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.lora.keys import SCHEMES
from likeness.lora.load import save_lora
from likeness.lora.model import LoraTensors
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, PictureSet, TrainingSet, from_images
from likeness.trainers.loop import train
from likeness.trainers.lora import injected
from likeness.trainers.outcome import Callbacks, TrainingResult
from likeness.trainers.rebinding import Rebinding
from likeness.trainers.targets import text_encoder_layers

PLAIN, WEIGHTED = "a photo of a sks", "a (red:1.3) photo of a [sks], (((deep))) in the snow"
LONG = "a very " + "long " * 100 + "sks"
SIZES = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
RUN = TrainingConfig(
    steps=4, rank=2, alpha=2, learning_rate=1e-2, text_encoder_learning_rate=5e-3, batch_size=2, seed=3
)


@contextmanager
def live(model: Any, clip: Any, which: str = "all", pattern: str = "") -> Iterator[Any]:
    """As the session has it."""
    from likeness.nodes.host import autograd_weights, ordinary_tensors
    from likeness.nodes.host.text import LiveText

    text = LiveText(clip, model, which, pattern)
    with ordinary_tensors(), autograd_weights(model.model), text.training():
        yield text


def encoded(clip: Any, text: str) -> dict[str, Any]:
    """The host's own encoding; names -> tensors."""
    with torch.inference_mode():
        ((cond, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return {"cond": cond, **more}


def numbers(conditioning: Any) -> dict[str, Any]:
    ((cond, more),) = conditioning
    return {"cond": cond, **more}


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float = 0.0) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if value is None:
            assert ours[name] is None
        elif tolerance:
            torch.testing.assert_close(ours[name], value, atol=tolerance, rtol=tolerance)
        else:
            assert torch.equal(ours[name], value), name


def state(module: torch.nn.Module) -> list[Any]:
    """All of a module that training could change."""
    found: list[Any] = []
    for name, child in module.named_modules():
        hooks = (len(child._forward_hooks), len(child._forward_pre_hooks), len(child._backward_hooks))
        found.append((name, id(child), child.training, hooks, sorted(child.__dict__)))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest = hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        flags = (tensor.requires_grad, tensor.grad is None, tensor.is_inference())
        found.append((name, id(tensor), tensor.data_ptr(), flags, digest))
    return found


@pytest.mark.parametrize("layer", [None, -2])
@pytest.mark.parametrize("text", [PLAIN, WEIGHTED, LONG, ""])
def test_untouched_adapters_encode_as_the_host_does(
    small: SimpleNamespace, family: str, text: str, layer: int | None
) -> None:
    """To the bit, weights of words, chunks and clip skip too: fails if anything of the host's encoding is left out."""
    model, clip = small.build(family)
    clip.clip_layer(layer)
    expected = encoded(clip, text)
    with live(model, clip) as encoder:
        layers = text_encoder_layers(encoder.encoders, "all")
        with injected(encoder.encoders, layers, rank=2, alpha=2, seed=0), Rebinding():
            ours = numbers(encoder.conditioning(text))
    assert ours["cond"].requires_grad and not ours["cond"].is_inference()
    assert_same(ours, expected)


def test_gradient_is_that_of_finite_differences(small: SimpleNamespace, family: str) -> None:
    """From x̂₀ through the model, the pooled text and the encoders: fails where a gradient is cut off or mixed up."""
    from likeness.nodes.host import HostDenoiser

    model, clip = small.build(family)
    chance = torch.Generator().manual_seed(1)
    with live(model, clip) as text:
        denoiser = HostDenoiser(model, text=text)
        layers = text_encoder_layers(denoiser.text_encoders, "all")
        with injected(denoiser.text_encoders, layers, rank=2, alpha=2, seed=0) as adapters:
            parameters = adapters.parameters()
            directions = [torch.randn(p.shape, generator=chance) for p in parameters]
            with torch.no_grad():
                for parameter in parameters:
                    parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.1)
            shape = (2, model.model.latent_format.latent_channels, 8, 8)
            noisy, weight = torch.randn(shape, generator=chance), torch.randn(shape, generator=chance)
            sigma = torch.tensor([0.7, 0.4])
            conds = [text.cond(words, noisy[:1], SIZES) for words in (WEIGHTED, PLAIN)]

            def loss() -> torch.Tensor:
                return (denoiser.denoise(noisy, sigma, conds) * weight).sum()

            def moved(step: float) -> float:
                with torch.no_grad():
                    for parameter, direction in zip(parameters, directions, strict=True):
                        parameter.add_(direction, alpha=step)
                    return float(loss().double())

            with Rebinding():
                loss().backward()
            idle = {name for name, down, _ in adapters.factors() if down.grad is None}
            slope = sum(
                float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True) if p.grad is not None
            )
            ahead, behind = moved(3e-3), moved(-6e-3)
    assert slope == pytest.approx((ahead - behind) / 6e-3, rel=0.02)
    # SDXL takes CLIP-L's tokens from before its last layer, and Flux nothing of CLIP-L but the pooled text.
    assert all(family == "sdxl" and name.startswith("clip_l.transformer.text_model.encoder.layers.2.") for name in idle)


def data_of(text: Any, model: Any) -> TrainingSet:
    """Two random pictures with captions of different lengths."""
    chance = torch.Generator().manual_seed(5)
    shape = (1, model.model.latent_format.latent_channels, 8, 8)
    examples = []
    for caption in (PLAIN, WEIGHTED):
        latents = torch.randn(shape, generator=chance)
        examples.append(Example(latents[0], None, text.cond(caption, latents, SIZES), None))
    return TrainingSet(tuple(examples), text.cond("", torch.empty(shape), SIZES))


def run(model: Any, text: Any, folder: Path, config: TrainingConfig = RUN, **others: Any) -> TrainingResult:
    from likeness.nodes.host import HostDenoiser

    return train(HostDenoiser(model, text=text), data_of(text, model), config, folder, **others)


def with_steps(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**config.__dict__, **changes})


def tensors_of(result: TrainingResult) -> LoraTensors:
    return LoraTensors(result.tensors)


def test_what_is_learnt_is_what_the_host_applies(
    small: SimpleNamespace, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trained CLIP encodes as at the last step, so do saved files of every naming, and the base as ever.

    Fails if a layer is lost or misnamed, a scale is wrong, or an adapter stays in the host's model.
    """
    import comfy.sd
    from safetensors.torch import load_file

    from likeness.nodes.host.session import with_lora

    model, clip = small.build(family)
    before, weights = encoded(clip, WEIGHTED), state(clip.cond_stage_model)
    last = []
    with live(model, clip) as text:
        callbacks = Callbacks(sample=lambda step: last.append(numbers(text.conditioning(WEIGHTED))))
        result = run(model, text, tmp_path / "run", with_steps(RUN, sample_every=4), callbacks=callbacks)
    assert state(clip.cond_stage_model) == weights
    assert_same(encoded(clip, WEIGHTED), before)
    assert float((last[0]["cond"] - before["cond"]).abs().max()) > (0 if family == "flux" else 1e-3)

    lora = tensors_of(result)
    assert {name.split(".")[1] for name in lora if name.startswith("text_encoders.")} == {
        "sd15": {"clip_l"},
        "sdxl": {"clip_l", "clip_g"},
        "flux": {"clip_l", "t5xxl"},
    }[family]
    with torch.inference_mode():
        _, trained = with_lora(model, clip, lora)
    assert_same(encoded(trained, WEIGHTED), last[0], 1e-5)
    for naming in SCHEMES:
        if naming == "diffusers" and family == "flux":
            continue  # it has no names for T5
        caplog.clear()
        with caplog.at_level(logging.WARNING), torch.inference_mode():
            save_lora(tmp_path / "saved.safetensors", lora, naming, "fp32")
            loaded, trained = comfy.sd.load_lora_for_models(
                model, clip, load_file(tmp_path / "saved.safetensors"), 1.0, 1.0
            )
        assert "not loaded" not in caplog.text.lower(), naming
        assert len(loaded.patches) + len(trained.patcher.patches) == len(result.deltas)
        assert_same(encoded(trained, WEIGHTED), last[0], 1e-5)
    # What a checkpoint holds is an ordinary LoRA, too.
    caplog.clear()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        _, trained = comfy.sd.load_lora_for_models(model, clip, load_file(checkpoint / "lora.safetensors"), 1.0, 1.0)
    assert "not loaded" not in caplog.text.lower()
    assert_same(encoded(trained, WEIGHTED), last[0], 1e-5)
    assert_same(encoded(clip, WEIGHTED), before)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2, "caption_dropout": 0.3, "gradient_checkpointing": True}])
def test_resume_is_bit_for_bit(small: SimpleNamespace, tmp_path: Path, options: dict[str, Any]) -> None:
    """Fails if the text encoders' adapters or their optimizer's state are not kept."""
    model, clip = small.build("sdxl")
    config = with_steps(RUN, **options)
    with live(model, clip) as text:
        whole = run(model, text, tmp_path / "whole", config)
    with live(model, clip) as text:
        run(model, text, tmp_path / "parts", with_steps(config, steps=2))
    with live(model, clip) as text:
        resumed = run(model, text, tmp_path / "parts", config, resume_from=tmp_path / "parts")
    ours, theirs = tensors_of(resumed), tensors_of(whole)
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.losses == whole.losses


def test_an_encoder_that_is_not_trained_reads_each_text_once(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 beside a trained CLIP-L: fails if gigabytes run at each step, or the encoder keeps the shortcut."""
    model, clip = small.build("flux")
    t5 = clip.cond_stage_model.t5xxl
    calls = []
    original = type(t5).encode
    monkeypatch.setattr(type(t5), "encode", lambda self, tokens: calls.append(1) or original(self, tokens))
    before = state(clip.cond_stage_model)
    with live(model, clip, "first") as text:
        assert text.trained == ("clip_l.",)
        result = run(model, text, tmp_path / "first", with_steps(RUN, text_encoders="first"))
        assert len(calls) == 2
    assert state(clip.cond_stage_model) == before
    encoders = {name.split(".")[0] for name in result.deltas}
    assert encoders == {"diffusion_model", "clip_l"}
    with live(model, clip, "custom", r"t5xxl.*block\.1\..*SelfAttention\.q$") as text:
        assert text.trained == ("t5xxl.",)


def test_after_an_error(small: SimpleNamespace, tmp_path: Path) -> None:
    """Fails if adapters, the weights' aliases or the switched-off loading stay in the host's CLIP."""
    model, clip = small.build("sd15")
    before, expected = state(clip.cond_stage_model), encoded(clip, PLAIN)

    def fail(step: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError), live(model, clip) as text:
        run(model, text, tmp_path, with_steps(RUN, sample_every=2), callbacks=Callbacks(sample=fail))
    assert state(clip.cond_stage_model) == before
    assert_same(encoded(clip, PLAIN), expected)


def test_a_text_encoder_without_names_is_refused(small: SimpleNamespace) -> None:
    """Fails if training goes on for hours to write a file that no program reads."""
    from likeness.nodes.host.text import LiveText

    model, clip = small.build("sd15")
    with pytest.raises(ValueError, match="no second text encoder; there is clip_l"):
        LiveText(clip, model, "second")
    clip.cond_stage_model._modules["gemma"] = clip.cond_stage_model._modules.pop("clip_l")
    with pytest.raises(ValueError, match=r"\(gemma\).*no program knows"):
        LiveText(clip, model)


@pytest.fixture()
def pictures() -> PictureSet:
    """Two random ones."""
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return from_images(images, trigger="sks", class_noun="toy", resolution=64)


def test_a_session(small: SimpleNamespace, pictures: PictureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of samples are read by the encoders as they are at that step: fails if by those from before training."""
    from likeness.nodes.host import previews, train_lora
    from likeness.nodes.types import Samples

    model, clip = small.build("sd15")
    before, expected = state(clip.cond_stage_model), encoded(clip, "a sks")
    drawn = []

    def noted(self: Any) -> Any:
        drawn.append(numbers(self.texts.conditioning("a sks"))["cond"].clone())
        return previews.grid(torch.zeros(1, 8, 8, 3))

    monkeypatch.setattr(previews.Previewer, "draw", noted)
    samples = Samples(("a sks",), "", 0, 2, 2, 2.0, "euler", "normal", 64, 64)
    config = with_steps(RUN, sample_every=2)
    with torch.inference_mode():
        trained = train_lora(model, clip, small.eye(model), pictures, config, samples=samples)
    assert state(clip.cond_stage_model) == before
    assert_same(encoded(clip, "a sks"), expected)
    assert len(drawn) == 2 and not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], expected["cond"])
    torch.testing.assert_close(encoded(trained.clip, "a sks")["cond"], drawn[1], atol=1e-5, rtol=1e-5)
    assert trained.lora.metadata["ss_text_encoder_lr"] == "0.005"


def test_a_rate_of_zero_trains_none(small: SimpleNamespace, pictures: PictureSet) -> None:
    """Fails if text encoders are touched, or run at each step, without being asked for."""
    from likeness.nodes.host import train_lora

    model, clip = small.build("sd15")
    with torch.inference_mode():
        trained = train_lora(model, clip, small.eye(model), pictures, with_steps(RUN, text_encoder_learning_rate=0.0))
    assert trained.clip is clip
    assert not any("clip_l" in name for name in trained.lora)
