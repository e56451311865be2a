"""What a run does to take less memory and time, all of it at once and in the order that it needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .branch import lean_branches
from .compiled import Compiled, compiled_blocks
from .config import TrainingConfig
from .offload import Offload, offloaded_blocks
from .recast import recast_weights
from .recompute import Recomputed, recomputed_blocks

log = logging.getLogger(__name__)

MIB = float(1 << 20)


@dataclass(frozen=True)
class Economies:
    """What is in force; None = not asked for."""

    recomputed: Recomputed | None
    offload: Offload | None
    compiled: Compiled | None

    def lines(self) -> list[str]:
        """In words, a line each, for the run's report."""
        lines = []
        if self.recomputed is not None:
            lines.append(f"recomputed blocks: {len(self.recomputed.chosen)} of {self.recomputed.count}")
        if self.offload is not None:
            lines.append(
                f"swapped-out blocks: {self.offload.count}, {self.offload.bytes / MIB:.0f} MiB of weights, "
                f"{self.offload.largest / MIB:.0f} MiB at a time on the device"
            )
        if self.compiled is not None:
            failed = f"FAILED, ran without it: {self.compiled.failure}"
            lines.append(f"torch.compile: {failed if self.compiled.failure else f'{self.compiled.count} blocks'}")
        return lines


@contextmanager
def economised(
    module: nn.Module, modules: Mapping[str, nn.Module], config: TrainingConfig, device: torch.device
) -> Iterator[Economies]:
    """Everything that ``config`` asks for, for as long as the context lasts. Enter it when adapters are in place.

    Args:
        module: the Denoiser's.
        modules: all that have adapters, by prefix.
        device: where ``module`` computes.
    """
    recomputed, offload, compiled = None, None, None
    with ExitStack() as stack:
        stack.enter_context(lean_branches(modules, copies=not config.compile))
        if config.compile:
            compiled = stack.enter_context(compiled_blocks(module))
        for each in modules.values():
            stack.enter_context(recast_weights(each))
        if config.offload_blocks:
            offload = stack.enter_context(offloaded_blocks(module, config.offload_blocks, device))
        if config.gradient_checkpointing and config.checkpointing_share:
            recomputed = stack.enter_context(
                recomputed_blocks(module, random=config.dropout > 0, share=config.checkpointing_share)
            )
            if not recomputed.count:
                log.warning("gradient checkpointing is on, but the model has no blocks that it knows of")
        yield Economies(recomputed, offload, compiled)
