"""ZipLoRA on the host's own models, both families: measured is what the host's LoRA loader makes of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.lora.columns import columns_of, with_columns
from likeness.lora.delta import LowRankDelta
from likeness.lora.keys import from_deltas
from likeness.lora.model import LoraTensors
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import from_images

CONFIG = TrainingConfig(steps=4, learning_rate=0.05, seed=3, rank=1)
PROMPTS = ("a picture of a sks", "a cup in sty style")


@pytest.fixture(scope="module", params=["tiny-unet", "tiny-mmdit"])
def loaded(request: pytest.FixtureRequest, comfy: SimpleNamespace) -> Iterator[tuple[Any, ...]]:
    """(model, clip, vae), loaded as the host does: in inference mode."""
    import comfy.sd

    from likeness.devtools.checkpoint import is_shipped, tiny_checkpoint

    if not is_shipped(request.param):
        pytest.skip(f"NOT TESTED: the weights of {request.param} are not in this checkout")
    path = tiny_checkpoint(model=request.param)
    with torch.inference_mode():
        yield comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3]


def random_lora(model: Any, seed: int, wanted: Callable[[str], bool], title: str, rank: int = 4) -> LoraTensors:
    """A LoRA of the model's own layers, half as large as their weights."""
    from likeness.nodes.host import model_layers
    from likeness.trainers.targets import adaptable_layers

    chance = torch.Generator().manual_seed(seed)
    there = adaptable_layers({"diffusion_model.": model.model.diffusion_model})
    shapes = {name: shape for name, shape in model_layers(model).items() if name in there and wanted(name)}
    deltas = {}
    for name, shape in shapes.items():
        kind, ones = ("conv", (1, 1)) if len(shape) == 4 else ("linear", ())
        up, down = (torch.randn(s, generator=chance) for s in ((shape[0], rank, *ones), (rank, *shape[1:])))
        weight = float(there[name].weight.float().norm())
        scale = 0.5 * weight / float((up.flatten(1) @ down.flatten(1)).norm())
        deltas[name] = LowRankDelta(up, down, scale, kind)
    return LoraTensors(from_deltas(deltas), {"modelspec.title": title})


@pytest.fixture(scope="module")
def loras(loaded: tuple[Any, ...]) -> tuple[LoraTensors, LoraTensors]:
    """A subject's of attention alone, and a style's of all layers."""
    return (
        random_lora(loaded[0], 1, lambda name: "attn" in name, "subject"),
        random_lora(loaded[0], 2, lambda name: "attn" in name or ".ff" in name or ".mlp" in name, "style", rank=2),
    )


def learn(
    loaded: tuple[Any, ...], asked: Any, config: TrainingConfig = CONFIG, overlap: float = 1e-4, **more: Any
) -> Any:
    from likeness.nodes.host import learn_zip
    from likeness.nodes.host.zipped import Drawing

    drawing = more.pop("drawing", Drawing(width=64, height=64))
    return learn_zip(*loaded, asked, config, overlap, drawing, **more)


def asked_of(loras: tuple[Any, ...], **more: Any) -> list[Any]:
    from likeness.nodes.host.zipped import Asked

    return [
        Asked(f"socket_{n}", lora, (text,), **more) for n, (lora, text) in enumerate(zip(loras, PROMPTS, strict=True))
    ]


def predicted(loaded: tuple[Any, ...], loras: tuple[Any, ...], prompt: str) -> Tensor:
    """x̂₀ of the host's own patched model."""
    import comfy.model_management

    from likeness.nodes.host import HostDenoiser
    from likeness.nodes.host.session import with_lora
    from likeness.nodes.host.text import CachedText

    model, clip, _ = loaded
    for lora in loras:
        model = with_lora(model, clip, lora)[0]
    channels = model.get_model_object("latent_format").latent_channels
    noise = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        texts = CachedText(clip, model)
        cond = texts.cond(prompt, noise[:1], {})
        comfy.model_management.load_models_gpu([model])
        denoiser = HostDenoiser(model)
        levels = len(denoiser.sigmas)
        sigma = denoiser.sigmas[[levels // 4, levels // 2, 3 * levels // 4, levels - 1]]
        noisy = denoiser.noise_scaling(sigma, noise, torch.zeros_like(noise))
        return denoiser.denoise(noisy, sigma, [cond] * 4) / sigma.view(-1, 1, 1, 1)


def test_merged_file_is_what_was_learnt(loaded: tuple[Any, ...], loras: Any) -> None:
    """The file in the host's loader = each LoRA with its coefficients, loaded one after the other; it is nearer to both
    LoRAs than the plain sum, on noise of the test's own. Fails where the export, the layers' names or the teachers are
    wrong."""
    run = learn(loaded, asked_of(loras), replace(CONFIG, steps=16))
    columns = run.result.columns
    each = tuple(with_columns(lora, columns_of(columns, n)) for n, lora in enumerate(loras))
    for prompt in PROMPTS:
        file = predicted(loaded, (run.lora,), prompt)
        torch.testing.assert_close(file, predicted(loaded, each, prompt), rtol=1e-3, atol=1e-3)
    for lora, prompt in zip(loras, PROMPTS, strict=True):
        goal = predicted(loaded, (lora,), prompt)
        plain, merged = (predicted(loaded, those, prompt) for those in (loras, (run.lora,)))
        assert float((merged - goal).square().mean()) < 0.9 * float((plain - goal).square().mean())
    ranks = {tensor.shape[0] for key, tensor in run.lora.items() if key.endswith("lora_down.weight")}
    assert max(ranks) == 6 and run.coefficients.shape[-1] == run.curves.shape[-1] == 3
    assert "subject" in run.report and (run.folder / f"{run.folder.name}.safetensors").is_file()


def test_pictures_drawn_pictures_and_text_encoders(loaded: tuple[Any, ...], loras: Any) -> None:
    """A dataset for one, drawn pictures for the other, and a LoRA that changes the text encoder, too: the teacher hears
    its own text encoder, the merge the sum's. Fails where either is missing."""
    from likeness.nodes.host.zipped import DRAWN, Drawing

    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    one, other = asked_of(loras)
    name = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"
    width = int(
        loaded[1].cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].self_attn.q_proj.weight.shape[0]
    )
    text = {f"{name}.lora_up.weight": torch.ones(width, 1), f"{name}.lora_down.weight": torch.ones(1, width)}
    one = replace(one, pictures=from_images(images, trigger="sks", class_noun="toy", resolution=64))
    other = replace(other, lora=LoraTensors({**other.lora, **text}, other.lora.metadata))
    drawing = Drawing(DRAWN, 64, 64, pictures=2, steps=2, cfg=2.0)
    run = learn(loaded, [one, other], replace(CONFIG, steps=2), drawing=drawing)
    torch.testing.assert_close(
        run.lora[f"{name}.lora_up.weight"] @ run.lora[f"{name}.lora_down.weight"], torch.ones(width, width)
    )
    assert run.clip is not loaded[1] and run.result.steps_done == 2
    assert all(fit.base > 0 and fit.plain > 0 for fit in run.result.fits)


def test_cancel_keeps_and_resumes(loaded: tuple[Any, ...], loras: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the middle, the folder has the LoRA of that step and its state; gone on, all is to the bit what an
    unbroken run learns. The host's model is the very same afterwards."""
    import comfy.model_management

    from likeness.nodes.host.interrupt import Interrupt, InterruptProcessingException

    comfy.model_management.load_models_gpu([loaded[0]])
    before = {name: tensor.clone() for name, tensor in loaded[0].model.state_dict().items()}
    whole = learn(loaded, asked_of(loras), run_name="whole")
    calls = iter(range(100))
    monkeypatch.setattr(Interrupt, "cancelled", lambda self: next(calls) >= 2)
    with pytest.raises(InterruptProcessingException):
        learn(loaded, asked_of(loras), run_name="cancelled")
    monkeypatch.undo()
    folder = sorted(whole.folder.parent.glob("cancelled*"), key=lambda path: path.stat().st_mtime)[-1]
    assert (folder / f"{folder.name}.safetensors").is_file()
    run = learn(loaded, asked_of(loras), resume_from=folder.name)
    assert run.folder == folder and run.result.records == whole.result.records
    assert all(torch.equal(run.lora[key], whole.lora[key]) for key in whole.lora)
    with pytest.raises(ValueError, match="overlap_weight is"):
        learn(loaded, asked_of(loras), overlap=0.5, resume_from=folder.name)
    after = loaded[0].model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module._forward_hooks for module in loaded[0].model.modules())


def test_refusals(loaded: tuple[Any, ...], loras: Any) -> None:
    """Without pictures and prompt there is nothing to ask, and one LoRA is no merge: told before any work."""
    one, other = asked_of(loras)
    with pytest.raises(ValueError, match="style has neither pictures nor a prompt"):
        learn(loaded, [one, replace(other, prompts=())])
    with pytest.raises(ValueError, match="expected two or more"):
        learn(loaded, [one])


def test_sockets_belong_together(comfy: SimpleNamespace) -> None:
    """Each LoRA goes with its own prompt and dataset, in the sockets' order; empty sockets and lines are left out."""
    from likeness.nodes.zip_lora import asked_of

    wired = {
        "style_lora": {"b": 1},
        "subject_lora": {"a": 1},
        "lora_4": {"d": 1},
        "prompt_4": " x \n\ny",
        "lora_3": None,
    }
    wired |= {"subject_prompt": "one", "style_prompt": "two", "style_dataset": "pictures", "dataset_3": "others"}
    found = [(each.socket, *each.lora, each.prompts, each.pictures) for each in asked_of(wired)]
    assert found == [
        ("subject", "a", ("one",), None),
        ("style", "b", ("two",), "pictures"),
        ("lora_4", "d", ("x", "y"), None),
    ]
