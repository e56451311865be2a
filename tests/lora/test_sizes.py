"""Files of every algorithm against the MODEL's layers: what does not fit is named."""

from __future__ import annotations

import pytest
import torch

from likeness.lora.keys import check_fit

LAYER = "diffusion_model.input_blocks.1.0.in_layers.2"


def ones(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {f"{LAYER}.{name}": torch.ones(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "tensors",
    [
        ones(hada_w1_a=(6, 2), hada_w1_b=(2, 36), hada_w2_a=(6, 2), hada_w2_b=(2, 36)),
        ones(hada_w1_a=(2, 6), hada_w1_b=(2, 4), hada_t1=(2, 2, 3, 3), hada_w2_a=(2, 6), hada_w2_b=(2, 4)),
        ones(lokr_w1=(2, 2), lokr_w2=(3, 2, 3, 3)),
        ones(lokr_w1=(2, 2), lokr_w2_a=(3, 1), lokr_w2_b=(1, 18)),
        ones(lokr_w1_a=(2, 1), lokr_w1_b=(1, 2), lokr_w2_a=(1, 3), lokr_w2_b=(1, 2), lokr_t2=(1, 1, 3, 3)),
        ones(oft_blocks=(3, 2, 2)),
        ones(diff=(6, 4, 3, 3)),
    ],
    ids=lambda tensors: min(tensors).rsplit(".", 1)[1],
)
def test_what_fits_passes_and_what_does_not_is_named(tensors: dict[str, torch.Tensor]) -> None:
    """Fails if a file made for another base is taken, or a right one refused (Tucker cores and kernels included)."""
    check_fit(tensors, {LAYER: (6, 4, 3, 3)})
    with pytest.raises(ValueError, match=f"another size.*{LAYER}"):
        check_fit(tensors, {LAYER: (8, 4, 3, 3)})
    if not any("oft" in name for name in tensors):
        with pytest.raises(ValueError, match="another size"):
            check_fit(tensors, {LAYER: (6, 4, 1, 1)})


def test_malformed_tensors_are_left_to_others() -> None:
    """Fails if a broken file ends in an error of indexing."""
    for broken in (ones(hada_w1_a=(6,), hada_w1_b=(2, 36)), ones(lokr_w1=()), ones(oft_blocks=(3, 2)), ones(diff=(6,))):
        check_fit(broken, {LAYER: (6, 4, 3, 3)})
