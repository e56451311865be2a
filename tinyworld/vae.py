"""A TAESD-shaped autoencoder: 3×64×64 in [0, 1] <-> 4×8×8 latents, or 16×8×8. 2.4M parameters.

The layout (and so the key names) is that of the Tiny AutoEncoder for Stable Diffusion, which the host recognises
by `taesd_decoder.1.weight`, whose shape tells it the number of channels. Latents leave it as the family's scale and
shift expect them: for SD1.5 with zero mean and std 1/0.18215.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SD15_SCALE = 0.18215


@dataclass(frozen=True)
class LatentFormat:
    """What a family's model sees of the autoencoder's latents z: (z − shift) · scale."""

    channels: int
    scale: float
    shift: float


SD15 = LatentFormat(4, SD15_SCALE, 0.0)
SD3 = LatentFormat(16, 1.5305, 0.0609)


def _conv(inside: int, outside: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=bias)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fuse(self.conv(x) + x)
        return y


def _encoder(latent_channels: int, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, width), _Block(width)]
    for _ in range(3):
        layers += [_conv(width, width, stride=2, bias=False), *(_Block(width) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, latent_channels))


def _decoder(latent_channels: int, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(latent_channels, width), nn.ReLU()]
    for _ in range(3):
        layers += [*(_Block(width) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, _Block(width), _conv(width, 3))


class TinyVAE(nn.Module):
    """`encode`/`decode` work on raw latents (about unit std); `vae_scale`, `vae_shift` are what the host applies."""

    def __init__(self, latents: LatentFormat = SD15) -> None:
        super().__init__()
        self.latents = latents
        self.taesd_encoder = _encoder(latents.channels)
        self.taesd_decoder = _decoder(latents.channels)
        self.vae_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.vae_shift = nn.Parameter(torch.tensor(0.0), requires_grad=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.5)  # 30 residual convolutions in a row explode at the full gain
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> raw latents (B, C, H/8, W/8)."""
        latents: Tensor = self.taesd_encoder(pictures)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents -> (B, 3, H, W), about [0, 1]."""
        pictures: Tensor = self.taesd_decoder(latents)
        return pictures

    def model_latents(self, pictures: Tensor) -> Tensor:
        """What the diffusion model sees: the host's `encode`, then the family's scale. About zero mean, unit std."""
        return (self.encode(pictures) / self.vae_scale + self.vae_shift - self.latents.shift) * self.latents.scale

    def from_model_latents(self, latents: Tensor) -> Tensor:
        """Inverse of `model_latents` -> pictures in [0, 1]."""
        raw = (latents / self.latents.scale + self.latents.shift - self.vae_shift) * self.vae_scale
        return self.decode(raw).clamp(0, 1)

    @torch.no_grad()
    def calibrate(self, pictures: Tensor) -> None:
        """Set the stored scale and shift so that these pictures give model latents of zero mean and unit std."""
        raw = torch.cat([self.encode(part) for part in torch.split(pictures, 64)])
        self.vae_scale.fill_(float(raw.std()) * self.latents.scale)
        self.vae_shift.fill_(self.latents.shift - float(raw.mean()) / float(self.vae_scale))


@torch.no_grad()
def widened(vae: TinyVAE, latents: LatentFormat) -> TinyVAE:
    """An autoencoder of more latent channels that starts where `vae` ended: its own channels come first, the new ones
    are random in the encoder and unheard in the decoder."""
    wide = TinyVAE(latents)
    for name, new in wide.state_dict().items():
        old = vae.state_dict()[name]
        if new.shape != old.shape and name.startswith("taesd_decoder"):
            new.zero_()
        new[tuple(slice(size) for size in old.shape)] = old
    wide.vae_scale.fill_(1.0)
    wide.vae_shift.fill_(0.0)
    return wide


def psnr(result: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, dB; (B, 3, H, W) in [0, 1] -> (B,)."""
    error = (result - truth).square().flatten(1).mean(1).clamp_min(1e-10)
    return -10 * torch.log10(error)
