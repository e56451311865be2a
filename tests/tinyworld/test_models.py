"""The small models' arithmetic, against other people's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from likeness.tinyworld.packing import pack, unpack
from likeness.tinyworld.resume import load_progress, save_progress
from likeness.tinyworld.text import WIDTH
from likeness.tinyworld.train_vae import train_vae
from likeness.tinyworld.unet import TinyUNet, alphas_cumprod, timestep_embedding
from likeness.tinyworld.vae import SD15_SCALE, TinyVAE, psnr


def test_schedule_is_stable_diffusions() -> None:
    """Oracle: the first and last ᾱ of SD1.5's published schedule, .9991 and .00466. Fails with plain linear β."""
    alpha_bar = alphas_cumprod()
    assert float(alpha_bar[0]) == pytest.approx(0.99915, abs=1e-5)
    assert float(alpha_bar[-1]) == pytest.approx(0.00466, abs=1e-5)


def test_timestep_embedding_has_cosines_first() -> None:
    """Closed form at t = 0 and for the slowest frequency. Fails with sines first, as in the original transformer."""
    embedded = timestep_embedding(torch.tensor([0, 7]))
    assert torch.equal(embedded[0], torch.cat([torch.ones(160), torch.zeros(160)]))
    slowest = 7 * 10000 ** (-159 / 160)
    assert float(embedded[1, 159]) == pytest.approx(np.cos(slowest), abs=1e-6)
    assert float(embedded[1, 319]) == pytest.approx(np.sin(slowest), abs=1e-6)


def test_unet_has_the_documented_size_and_starts_at_zero() -> None:
    """Fails if a layer is missing: 39.5M parameters were counted from the host's own model of these shapes."""
    unet = TinyUNet()
    assert sum(p.numel() for p in unet.parameters()) == 39_490_564
    out = unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 3, WIDTH))
    assert out.shape == (1, 4, 8, 8) and not out.any()


def test_calibrated_latents_are_what_sd15_expects() -> None:
    """Fails if the scale is inverted or the shift has the wrong sign: zero mean, unit std after the host's factor."""
    torch.manual_seed(0)
    vae, pictures = TinyVAE().requires_grad_(False), torch.rand(8, 3, 64, 64)
    vae.calibrate(pictures)
    latents = vae.model_latents(pictures)
    assert latents.shape == (8, 4, 8, 8)
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4) and float(latents.std()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(vae.from_model_latents(latents), vae.decode(vae.encode(pictures)).clamp(0, 1))
    assert pytest.approx(0.18215) == SD15_SCALE


def test_psnr_is_the_textbooks() -> None:
    """Closed form: an error of 0.1 everywhere is 20 dB. Fails if log10 or the peak is wrong."""
    truth = torch.full((2, 3, 4, 4), 0.5)
    assert psnr(truth + torch.tensor([0.1, 0.01])[:, None, None, None], truth).tolist() == pytest.approx([20, 40], 1e-4)


def test_pretraining_resumes_where_it_stood(tmp_path: Path) -> None:
    """Two runs of 250 + 3 steps cannot be afforded here, so the saved parts are compared: fails if one is not kept."""
    vae = TinyVAE()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3)
    vae.decode(vae.encode(torch.rand(1, 3, 16, 16))).sum().backward()
    optimizer.step()
    save_progress(tmp_path / "vae", 7, {"model": vae, "optimizer": optimizer})
    other = TinyVAE()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3)
    assert load_progress(tmp_path / "vae", {"model": other, "optimizer": other_optimizer}) == 7
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), other.state_dict().values(), strict=True))
    assert torch.equal(*(next(iter(o.state.values()))["exp_avg"] for o in (optimizer, other_optimizer)))
    assert load_progress(tmp_path / "nothing", {"model": other}) == 0


def test_two_vae_runs_are_one(tmp_path: Path) -> None:
    """Fails if anything of a step comes from a generator that the seed does not decide."""
    rgba = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 4), np.uint8)
    runs = [train_vae(rgba, rgba, tmp_path / str(i), steps=2, batch=2) for i in range(2)]
    for a, b in zip(*(run.state_dict().values() for run in runs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3)])
def test_packed_weights_are_off_by_half_a_step(shape: tuple[int, ...]) -> None:
    """Closed form: rounding is off by at most half of max|w|/127 in each output channel (and fp16's 2⁻¹¹ of the value).

    Fails if the scale is taken over the wrong axis: the channels here differ in size by a thousand.
    """
    torch.manual_seed(0)
    sizes = torch.logspace(-3, 0, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weights = {"w": torch.randn(shape) * sizes, "bias": torch.randn(shape[0]), "zero": torch.zeros(2, 2)}
    packed = pack(weights)
    assert packed["w"].dtype == torch.int8
    back = unpack(packed)
    assert set(back) == set(weights) and not back["zero"].any()
    step = weights["w"].flatten(1).abs().amax(1).view_as(sizes) / 127
    assert bool(((back["w"].float() - weights["w"]).abs() <= step / 2 + weights["w"].abs() / 1024).all())
    torch.testing.assert_close(back["bias"].float(), weights["bias"], rtol=1e-3, atol=1e-3)
