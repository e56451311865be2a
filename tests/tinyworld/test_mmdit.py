"""tiny-mmdit's arithmetic: its text, its schedule, its autoencoder's format, and all of it against the host's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from likeness.devtools.checkpoint import PARTS
from likeness.tinyworld import pretraining
from likeness.tinyworld.assemble import MODELS, TEXT, assemble, sd3_checkpoint_tensors
from likeness.tinyworld.mmdit import HOST_CONTEXT, HOST_POOLED, TinyMMDiT, host_weights, position_table, shifted
from likeness.tinyworld.packing import pack
from likeness.tinyworld.pretraining import Latents, Schedule
from likeness.tinyworld.resume import save_progress
from likeness.tinyworld.sample import draw_pictures
from likeness.tinyworld.split import load_split
from likeness.tinyworld.text import END, LENGTH, START, WIDTH
from likeness.tinyworld.text_encoder import TextEncoder, checkpoint_text
from likeness.tinyworld.train_mmdit import PretrainedFlow, train_mmdit
from likeness.tinyworld.vae import SD3, TinyVAE, psnr, widened

IDS = [320, 1125, 1674, 2368]


def randomised(model: PretrainedFlow) -> PretrainedFlow:
    """No layer at zero, so that none can be left out unnoticed; all values as fp16 keeps them."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if name != "text.rows":
            weight.data.copy_(torch.randn_like(weight) * (0.05 if weight.ndim > 1 else 0.2))
        weight.data.copy_(weight.data.half().float())
    return model.requires_grad_(False)


class WholeWords:
    """A tokenizer that knows four words."""

    def __call__(self, captions: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[IDS[hash_of(word)] for word in text.split()] for text in captions]}


def hash_of(word: str) -> int:
    return sum(word.encode()) % len(IDS)


def test_few_ends_stand_for_all() -> None:
    """Oracle: the same model told all 77 tokens. Fails if a share of ENDs is miscounted: off by far more."""
    model = randomised(PretrainedFlow(TextEncoder(IDS), depth=2))
    whole, few = (model.text([[320, 1125, 320], []], ends) for ends in (0, 16))
    x, time = torch.randn(2, 16, 8, 8), torch.tensor([100.0, 900.0])
    expected, got = (model.mmdit(x, time, e.states, e.pooled(), e.bias) for e in (whole, few))
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_pooled_vector_is_the_text_encoders() -> None:
    """Oracle: transformers' CLIPTextModel with these weights. Fails if padding counts, or a row goes through a norm."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = randomised(PretrainedFlow(TextEncoder(IDS), depth=1)).text
    weights = checkpoint_text(text, torch.float32, pooling=True)
    model = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    names = set(model.state_dict())
    model.load_state_dict(
        {name if name in names else name.removeprefix("text_model."): t for name, t in weights.items()}, strict=False
    )
    tokens = torch.full((2, LENGTH), END)
    tokens[:, 0] = START
    tokens[0, 1:4] = torch.tensor([1674, 320, 2368])
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True)
    encoded = text([[1674, 320, 2368], []])
    pooled = encoded.pooled()
    expected = torch.stack([out.last_hidden_state[0, 4], out.last_hidden_state[1, 1]])
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded.states[0, :5], out.hidden_states[-2][0, :5], rtol=1e-4, atol=1e-4)
    assert float((pooled[0] - pooled[1]).std()) > 0.1  # it does carry the prompt: a constant gives 0


def test_schedule_is_the_papers() -> None:
    """Closed form: σ(1/2) = 3/4 at shift 3. Fails if the shift is applied the wrong way round, or not at all."""
    assert float(shifted(torch.tensor(0.5))) == pytest.approx(0.75)
    sigmas = PretrainedFlow(TextEncoder(IDS), depth=1).sigmas(20)
    assert len(sigmas) == 21 and float(sigmas[0]) == 1 and float(sigmas[-1]) == 0
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_positions_tell_all_places_apart() -> None:
    """Fails if rows and columns share their half of the table: then (i, j) and (j, i) would look alike."""
    table = position_table(128, 4)[0]
    distance = torch.cdist(table, table) + 9 * torch.eye(16)
    assert float(distance.min()) > 0.5
    assert torch.equal(table[1, :64], table[5, :64]) and torch.equal(table[4, 64:], table[5, 64:])


def test_parameters_are_counted_from_the_shapes() -> None:
    """Closed form: 36 h² a block but 23 h² in the last, its embedders and biases. Fails if a layer is missing."""
    model, h, depth = TinyMMDiT(2), 128, 2
    matrices = 36 * h * h * (depth - 1) + 23 * h * h + (64 + 256 + 768 + 768 + h + h + 64 + 2 * h) * h
    biases = (2 * (3 + 1 + 5 + 6) * (depth - 1) + (3 + 1 + 5 + 6) + (3 + 2)) * h + 8 * h + 64
    assert sum(p.numel() for p in model.parameters()) == matrices + biases + 4 * 64 * depth
    out = model(torch.randn(1, 16, 8, 8), torch.tensor([500.0]), torch.randn(1, 3, WIDTH), torch.randn(1, WIDTH))
    assert out.shape == (1, 16, 8, 8) and not out.any()


def test_calibrated_latents_are_what_sd3_expects() -> None:
    """Fails if the shift is left out or has the wrong sign: zero mean, unit std after the host's scale and shift."""
    torch.manual_seed(0)
    vae, pictures = TinyVAE(SD3).requires_grad_(False), torch.rand(8, 3, 64, 64)
    vae.calibrate(pictures)
    latents = vae.model_latents(pictures)
    assert latents.shape == (8, 16, 8, 8)
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4) and float(latents.std()) == pytest.approx(1, abs=1e-3)
    host_latents = vae.encode(pictures) / vae.vae_scale + vae.vae_shift
    torch.testing.assert_close((host_latents - 0.0609) * 1.5305, latents)
    torch.testing.assert_close(vae.from_model_latents(latents), vae.decode(vae.encode(pictures)).clamp(0, 1))


def test_a_widened_autoencoder_starts_as_the_narrow_one() -> None:
    """Oracle: the narrow one's own pictures. Fails if a new channel is heard before it was trained."""
    torch.manual_seed(0)
    narrow, pictures = TinyVAE().requires_grad_(False), torch.rand(2, 3, 64, 64)
    wide = widened(narrow, SD3)
    latents = wide.encode(pictures)
    torch.testing.assert_close(latents[:, :4], narrow.encode(pictures))
    torch.testing.assert_close(wide.decode(latents), narrow.decode(narrow.encode(pictures)))
    assert bool(latents[:, 4:].any())


def test_a_killed_run_goes_on_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the unbroken run, bit for bit. Fails if the average, the optimizer or a draw is not the seed's alone."""
    split = load_split()
    pairs = tuple((name, "noto") for name in split.pretrain_subjects[:3])
    latents = Latents(torch.randn(3, 7, 16, 8, 8, generator=torch.Generator().manual_seed(1)), pairs)

    def run(folder: str) -> PretrainedFlow:
        plan = Schedule(steps=8, batch=2, learning_rate=1e-3, save_every=4)
        return train_mmdit(TextEncoder(IDS), latents, split, WholeWords(), tmp_path / folder, plan, depth=1)

    def save_and_die(*arguments: Any) -> None:
        save_progress(*arguments)
        raise KeyboardInterrupt

    whole = run("whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pretraining, "save_progress", save_and_die)
        run("broken")
    again = run("broken")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert any(bool(p.any()) for p in whole.mmdit.final_layer.linear.parameters()), "nothing was trained"


def test_euler_ends_at_the_picture_that_the_velocity_points_to() -> None:
    """Closed form: v = (x − target)/σ is straight, so any number of steps ends at the target. Fails if σ does not reach
    0, or if guidance takes the halves for each other: the empty prompt points elsewhere and weighs 1 − cfg."""
    torch.manual_seed(0)
    target, elsewhere = torch.randn(2, 1, 16, 8, 8) / 3
    vae = TinyVAE(SD3).requires_grad_(False)
    vae.calibrate(torch.rand(4, 3, 64, 64))

    class Straight(PretrainedFlow):
        def slope(self, x: torch.Tensor, sigma: torch.Tensor, condition: tuple[torch.Tensor, ...]) -> torch.Tensor:
            asked, empty = (x - target).chunk(2)
            return torch.cat([asked, empty + elsewhere]) / sigma

    drawn = draw_pictures(Straight(TextEncoder(IDS), 1), vae, WholeWords(), ["a cat"], steps=5, guidance=3.0)
    # guided: (x − target)/σ + (1 − 3) · elsewhere/σ
    torch.testing.assert_close(drawn, vae.from_model_latents(target + 2 * elsewhere), rtol=1e-3, atol=1e-3)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """Fails if a clone without the second model's weights ends in a KeyError, or a typo goes through."""
    with pytest.raises(ValueError, match=r"tiny-mmdit\.safetensors is missing"):
        assemble(tmp_path, tmp_path, "tiny-mmdit")
    with pytest.raises(ValueError, match="no model 'tiny-mmdti'"):
        assemble(tmp_path, tmp_path, "tiny-mmdti")


@pytest.fixture(scope="module")
def ours() -> tuple[PretrainedFlow, TinyVAE]:
    """Random weights at two blocks, as they come back from the shipped int8."""
    model = randomised(PretrainedFlow(TextEncoder(IDS), depth=2))
    vae = TinyVAE(SD3)
    vae.calibrate(torch.rand(4, 3, 64, 64))
    return model.eval(), vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def theirs(ours: tuple[PretrainedFlow, TinyVAE], comfy: SimpleNamespace, tmp_path_factory: Any) -> tuple[Any, Any, Any]:
    """The host's MODEL, CLIP and VAE of those weights, from an ordinary checkpoint file."""
    model, vae = ours
    folder = tmp_path_factory.mktemp("mmdit")
    tensors = sd3_checkpoint_tensors(model.mmdit.state_dict(), vae.state_dict(), model.text)
    save_file(tensors, folder / "tiny-mmdit.safetensors", {"format": "pt"})
    return tuple(comfy.sd.load_checkpoint_guess_config(str(folder / "tiny-mmdit.safetensors"))[:3])


@pytest.mark.host
def test_host_sees_an_sd3(theirs: tuple[Any, Any, Any]) -> None:
    """Fails if the host takes the checkpoint for another family, or its autoencoder for one of 4 channels."""
    import comfy.model_base
    import comfy.model_sampling

    patcher, clip, vae = theirs
    assert isinstance(patcher.model, comfy.model_base.SD3)
    assert isinstance(patcher.model.model_sampling, comfy.model_sampling.CONST)
    assert patcher.model.model_sampling.shift == 3.0
    assert vae.latent_channels == 16 and patcher.model.latent_format.latent_channels == 16
    assert clip.cond_stage_model.clip_g is None and clip.cond_stage_model.t5xxl is None
    missing = set(patcher.model.diffusion_model.state_dict()) ^ set(host_weights(TinyMMDiT(2).state_dict()))
    assert not missing


@pytest.mark.host
@pytest.mark.parametrize("prompt", ["a cat", ""])
def test_host_reads_a_prompt_as_pretraining_did(
    ours: tuple[PretrainedFlow, TinyVAE], theirs: tuple[Any, Any, Any], prompt: str, host_path: Path
) -> None:
    """Oracle: the host's own CLIP, from a prompt to context and pooled vector. Fails with a LayerNorm too many, the
    wrong layer, or padding in the mean."""
    model, clip = ours[0], theirs[1]
    context, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
    tokens = [token for token, *_ in clip.tokenize(prompt)["l"][0][1:] if token != END]
    assert set(tokens) <= set(model.text.ids)
    rows, vector, bias = model.condition([tokens])
    assert context.shape == (1, LENGTH, HOST_CONTEXT) and pooled.shape == (1, HOST_POOLED)
    assert not context[..., WIDTH:].any() and not pooled[:, WIDTH:].any()
    torch.testing.assert_close(context[:, :, :WIDTH], rows, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pooled[:, :WIDTH], vector, rtol=1e-3, atol=1e-3)
    assert not bias.any()


@pytest.mark.host
@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
def test_host_computes_the_same_velocity(
    ours: tuple[PretrainedFlow, TinyVAE], theirs: tuple[Any, Any, Any], size: tuple[int, int]
) -> None:
    """Oracle: the host's MMDiT with 77 tokens and full-width text. Fails if a position, gate or key is elsewhere."""
    model, (patcher, clip, _) = ours[0], theirs
    context, pooled = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    tokens = [token for token, *_ in clip.tokenize("a cat")["l"][0][1:] if token != END]
    x, sigma = torch.randn(2, 16, *size), torch.tensor([0.2, 0.95])
    with torch.no_grad():
        host = patcher.model.diffusion_model.float()(
            x, sigma * 1000, context=context.repeat(2, 1, 1), y=pooled.repeat(2, 1)
        )
        mine = model.mmdit(x, sigma * 1000, *model.condition([tokens, tokens]))
    assert float(host.std()) > 0.05
    torch.testing.assert_close(mine, host, rtol=1e-4, atol=1e-4 * float(host.abs().max()))


@pytest.mark.host
def test_host_encodes_and_decodes_the_same(ours: tuple[PretrainedFlow, TinyVAE], theirs: tuple[Any, Any, Any]) -> None:
    """Oracle: the host's VAE and latent format. Fails if scale or shift is applied twice, or not at all."""
    vae, (patcher, _, host) = ours[1], theirs
    pictures = torch.rand(2, 3, 64, 64)
    latents = patcher.model.process_latent_in(host.encode(pictures.permute(0, 2, 3, 1)))
    torch.testing.assert_close(latents, vae.model_latents(pictures), rtol=0.02, atol=0.02)
    decoded = host.decode(patcher.model.process_latent_out(latents)).permute(0, 3, 1, 2)
    assert float(psnr(decoded.detach(), vae.from_model_latents(latents.detach())).min()) > 45


@pytest.mark.host
def test_host_runs_down_the_same_sigmas(theirs: tuple[Any, Any, Any]) -> None:
    """Oracle: the host's `normal` scheduler. Fails if our sampler's pictures are those of another schedule."""
    import comfy.samplers

    host = comfy.samplers.calculate_sigmas(theirs[0].model.model_sampling, "normal", 20)
    np.testing.assert_allclose(PretrainedFlow(TextEncoder(IDS), 1).sigmas(20).numpy(), host.numpy(), atol=1e-5)


def test_devtools_name_the_same_parts() -> None:
    """Fails if devtools, which do not load torch to know it, name other files than `assemble` reads."""
    assert {model: (f"{model}.safetensors", vae, TEXT) for model, (vae, _) in MODELS.items()} == PARTS


def test_packing_fits(tmp_path: Path) -> None:
    """Fails if the model outgrows what a clone should weigh: 20 MB in int8."""
    packed = pack(TinyMMDiT().state_dict())
    assert sum(t.numel() * t.element_size() for t in packed.values()) < 20_000_000
