from __future__ import annotations

import diffusers.optimization
import pytest
import torch
import transformers

from likeness.trainers.schedule import rate_factor


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_rates_are_those_of_the_libraries(schedule: str, warmup: int, library: str) -> None:
    """Fails if any step's rate differs from what diffusers or transformers would use."""
    steps = 40
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make = diffusers.optimization.get_scheduler if library == "diffusers" else transformers.get_scheduler
    oracle = make(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        assert rate_factor(step, schedule, warmup, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        oracle.step()


def test_unknown_schedule() -> None:
    """Fails if a misspelt schedule silently trains at some rate."""
    with pytest.raises(ValueError, match="'cosin'"):
        rate_factor(3, "cosin", 0, 10)
