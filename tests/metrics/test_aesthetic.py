"""The aesthetic head against its matrices multiplied by hand; files that are it and files that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from likeness.metrics.aesthetic import AestheticHead, aesthetic_scores, load_aesthetic, mean_aesthetic


def head() -> AestheticHead:
    torch.manual_seed(0)
    return AestheticHead().eval().requires_grad_(False)


def published(own: AestheticHead) -> dict[str, torch.Tensor]:
    """The published file's names, written out."""
    names = [f"layers.{number}.{part}" for number in (0, 2, 4, 6, 7) for part in ("weight", "bias")]
    state = own.state_dict()
    assert list(state) == names
    return state


def test_the_head_is_one_linear_function_of_the_direction() -> None:
    """All matrices multiplied to one row. Fails if an activation or a layer is added, or an embedding's length counts;
    or a picture's score depends on its neighbours."""
    own = head()
    state = {name: tensor.double() for name, tensor in published(own).items()}
    row, shift = torch.eye(768, dtype=torch.float64), torch.zeros(768, dtype=torch.float64)
    for number in (0, 2, 4, 6, 7):
        weight = state[f"layers.{number}.weight"]
        row, shift = weight @ row, weight @ shift + state[f"layers.{number}.bias"]
    embeddings = torch.randn(5, 768, generator=torch.Generator().manual_seed(1))
    unit = embeddings.double() / embeddings.double().square().sum(1, keepdim=True).sqrt()
    expected = (unit @ row.T + shift).flatten()
    found = aesthetic_scores(7 * embeddings, own)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert aesthetic_scores(embeddings[2:3], own).tolist() == pytest.approx(expected[2:3].tolist(), abs=1e-5)
    assert mean_aesthetic(embeddings, own) == pytest.approx(float(expected.mean()), abs=1e-5)


def test_both_kinds_of_file_are_read(tmp_path: Path) -> None:
    """Fails if a name of the published file is not ours, or a weight goes elsewhere."""
    own = head()
    torch.save(published(own), tmp_path / "head.pth")
    save_file(published(own), tmp_path / "head.safetensors")
    embeddings = torch.randn(2, 768)
    for name in ("head.pth", "head.safetensors"):
        assert torch.equal(
            aesthetic_scores(embeddings, load_aesthetic(tmp_path / name)), aesthetic_scores(embeddings, own)
        )


def test_another_head_or_another_clip_is_refused(tmp_path: Path) -> None:
    """Fails if the older linear head, a pickle with code, or features of another CLIP give a score."""
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "linear.pth")
    torch.save(Path("x"), tmp_path / "code.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    for name in ("linear.pth", "code.pth", "cut.safetensors"):
        with pytest.raises(ValueError, match="is not LAION's improved aesthetic predictor"):
            load_aesthetic(tmp_path / name)
    for embeddings in (torch.rand(2, 512), torch.rand(768), torch.rand(0, 768)):
        with pytest.raises(ValueError, match="CLIP ViT-L/14"):
            aesthetic_scores(embeddings, head())
    with pytest.raises(ValueError, match="zero, NaN or infinite"):
        aesthetic_scores(torch.zeros(1, 768), head())
