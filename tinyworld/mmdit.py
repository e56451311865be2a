"""`tiny-mmdit`: an SD3-family transformer (Esser et al. 2024, arXiv 2403.03206; q and k normalised as in SD3.5).

Module names are those of the original checkpoints. The family's rule is kept, width = 64 × depth = 64 × heads, so its
size is its depth alone. Text reaches it as CLIP-L's 768 channels; what T5 and CLIP-G would bring is zero, so the two
layers that read them have 768 inputs here and are filled up with zeros for the host (`host_weights`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .text import WIDTH as TEXT
from .unet import timestep_embedding

DEPTH = 5
HEAD = 64
PATCH = 2
CHANNELS = 16
GRID = 16  # patches a side that the position table holds: pictures of up to 256 pixels
HOST_CONTEXT, HOST_POOLED = 4096, 2048  # widths of the host's text: T5's channels, CLIP-L's and CLIP-G's pooled outputs
TIMES = 256
SHIFT = 3.0  # σ = 3t / (1 + 2t), which the host takes for every SD3


def position_table(width: int, side: int = GRID) -> Tensor:
    """Fixed 2-D positions (1, side², width): sines and cosines of the column, then of the row; rounded to fp16."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)
    table = torch.cat([line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)], 2)
    return table.reshape(1, side * side, width).half().float()


def _mlp(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, hidden), nn.SiLU(), nn.Linear(hidden, outside))


class _Embedder(nn.Module):
    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.mlp = _mlp(inside, width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x)
        return y


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q, self.ln_k = nn.RMSNorm(HEAD, eps=1e-6), nn.RMSNorm(HEAD, eps=1e-6)
        if not last:
            self.proj = nn.Linear(width, width)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, width) -> q, k, v, each (B, heads, n, 64)."""
        q, k, v = self.qkv(x).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        q, k = (
            functional.rms_norm(t, (HEAD,), n.weight.to(t.dtype), n.eps) for t, n in ((q, self.ln_q), (k, self.ln_k))
        )
        return q, k, v


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return y


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class _Stream(nn.Module):
    """One of a block's two streams, text or picture. The text's last one only feeds the attention."""

    def __init__(self, width: int, last: bool = False) -> None:
        super().__init__()
        self.attn = _Attention(width, last)
        self.modulations = 2 if last else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.modulations * width))
        if not last:
            self.mlp = _MLP(width)

    def before(self, x: Tensor, vector: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        shift, scale, *rest = self.adaLN_modulation(vector).chunk(self.modulations, 1)
        return self.attn.heads(_modulate(x, shift, scale)), tuple(rest)

    def after(self, x: Tensor, mixed: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        gate, shift, scale, mlp_gate = rest
        x = x + gate[:, None] * self.attn.proj(mixed)
        y: Tensor = x + mlp_gate[:, None] * self.mlp(_modulate(x, shift, scale))
        return y


class _JointBlock(nn.Module):
    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.context_block, self.x_block = _Stream(width, last), _Stream(width)

    def forward(self, text: Tensor, x: Tensor, vector: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        ours, text_rest = self.context_block.before(text, vector)
        theirs, rest = self.x_block.before(x, vector)
        q, k, v = (torch.cat([a, b], 2) for a, b in zip(ours, theirs, strict=True))
        logits = (q * HEAD**-0.5) @ k.transpose(2, 3)  # written out: for 30 tokens the fused kernel is slower on a CPU
        mixed = ((logits if mask is None else logits + mask).softmax(3).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        count = text.shape[1]
        if not self.last:
            text = self.context_block.after(text, mixed[:, :count], text_rest)
        return text, self.x_block.after(x, mixed[:, count:], rest)


class _FinalLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, PATCH * PATCH * CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector).chunk(2, 1)
        y: Tensor = self.linear(_modulate(x, shift, scale))
        return y


class TinyMMDiT(nn.Module):
    """Velocity noise − x₀ of (B, 16, h, w) latents (h, w even) at (B,) timesteps 1000·σ in [0, 1000]."""

    pos_embed: Tensor

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        width = HEAD * depth
        self.x_embedder = _PatchEmbed(width)
        self.t_embedder, self.y_embedder = _Embedder(TIMES, width), _Embedder(TEXT, width)
        self.context_embedder = nn.Linear(TEXT, width)
        self.register_buffer("pos_embed", position_table(width), persistent=False)
        self.joint_blocks = nn.ModuleList(_JointBlock(width, last=i == depth - 1) for i in range(depth))
        self.final_layer = _FinalLayer(width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if "adaLN" in name or name == "final_layer.linear":  # each block starts as the identity (DiT)
                    nn.init.zeros_(module.weight)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, pooled: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """`context` (B, n, 768), `pooled` (B, 768); `bias` (B, 1, 1, n) is added to the logits of the text's keys:
        log m stands for a token repeated m times, which stays exact because text has no positions here."""
        h, w = x.shape[2] // PATCH, x.shape[3] // PATCH
        top, left = (GRID - h) // 2, (GRID - w) // 2
        places = self.pos_embed.view(1, GRID, GRID, -1)
        place = places[:, top : top + h, left : left + w].flatten(1, 2)
        picture = self.x_embedder(x) + place
        vector = self.t_embedder(timestep_embedding(timesteps, TIMES)) + self.y_embedder(pooled)
        text = self.context_embedder(context)
        mask = None if bias is None else functional.pad(bias, (0, h * w))
        for block in self.joint_blocks:
            text, picture = block(text, picture, vector, mask)
        patches: Tensor = self.final_layer(picture, vector).view(len(x), h, w, PATCH, PATCH, CHANNELS)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def host_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """TinyMMDiT's state dict as an SD3 checkpoint has it: full-width text inputs, and the position table."""
    whole = dict(weights)
    for name, width in (("context_embedder.weight", HOST_CONTEXT), ("y_embedder.mlp.0.weight", HOST_POOLED)):
        whole[name] = functional.pad(weights[name], (0, width - TEXT))
    whole["pos_embed"] = position_table(len(weights["context_embedder.weight"]))
    return whole


def shifted(t: Tensor, shift: float = SHIFT) -> Tensor:
    """σ of time t in [0, 1] (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)
