"""The real pictures: emoji artwork of one subject in many styles, from npm packages, drawn at 64×64."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .split import CLASS_NOUNS, PACKS, STYLES

logger = logging.getLogger(__name__)
SIZE = 64
MARGIN = 4  # white on every side, so that a shifted or enlarged picture stays whole

Pack = dict[str, Any]


def download_packs(folder: Path) -> None:
    """Fetch the artwork with `npm pack` (about 24 MB); what is there already is kept."""
    for name, (version, _, _) in PACKS.items():
        if (folder / name / "icons.json").exists():
            continue
        if shutil.which("npm") is None:
            raise RuntimeError("tinyworld.build needs npm to fetch the emoji artwork: install Node.js, then run again")
        with tempfile.TemporaryDirectory() as temporary:
            subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{name}@{version}"], cwd=temporary, check=True)
            archive = next(Path(temporary).glob("*.tgz"))
            target = folder / name
            target.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive) as tar:
                for member in ("metadata.json", "icons.json"):  # icons.json last: its presence means whole
                    try:
                        source = tar.extractfile(f"package/{member}")
                    except KeyError:
                        continue  # not every pack has categories
                    assert source is not None
                    (target / member).write_bytes(source.read())


def load_packs(folder: Path) -> dict[str, Pack]:
    return {name: json.loads((folder / name / "icons.json").read_text()) for name in STYLES}


def find_icon(pack: Pack, name: str) -> dict[str, Any] | None:
    while name not in pack["icons"] and name in pack.get("aliases", {}):
        name = pack["aliases"][name]["parent"]
    icon: dict[str, Any] | None = pack["icons"].get(name)
    return icon


def subjects_with_class(folder: Path, packs: dict[str, Pack]) -> dict[str, str]:
    """Subjects that every style draws and that are things (animals, food, places, activities, objects)."""
    categories = json.loads((folder / "noto" / "metadata.json").read_text())["categories"]
    return {
        name: noun
        for category, noun in CLASS_NOUNS.items()
        for name in sorted(categories[category])
        if all(find_icon(packs[style], name) for style in STYLES)
    }


def draw(pack: Pack, name: str) -> NDArray[np.uint8]:
    """One icon as (64, 64, 4) RGBA with `MARGIN` clear pixels around it."""
    import resvg_py

    icon = find_icon(pack, name)
    if icon is None:
        raise ValueError(f"no icon named {name!r} in pack {pack.get('prefix')!r}")
    width = icon.get("width", pack.get("width", 16))
    height = icon.get("height", pack.get("height", 16))
    inner = SIZE - 2 * MARGIN
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{inner}" height="{inner}"'
        f' color="black">{icon["body"]}</svg>'
    )
    # twice the size, then box-filtered: resvg's own small renders leave hard edges
    data = resvg_py.svg_to_bytes(svg_string=svg, width=2 * inner, height=2 * inner)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA").resize((inner, inner), Image.Resampling.BOX)
    canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
    canvas[MARGIN:-MARGIN, MARGIN:-MARGIN] = np.asarray(image)
    return canvas


def draw_all(packs: dict[str, Pack], names: list[str], cache: Path) -> dict[tuple[str, str], NDArray[np.uint8]]:
    """Every (subject, style) picture, RGBA uint8; drawn once, then read from `cache` (.npz)."""
    if not cache.exists() or list(np.load(cache)["names"]) != names:
        jobs = [(name, style) for name in names for style in STYLES]
        with ThreadPoolExecutor() as pool:
            drawn = list(pool.map(lambda job: draw(packs[job[1]], job[0]), jobs))
        temporary = cache.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, names=np.array(names), pictures=np.stack(drawn))
        temporary.replace(cache)
        logger.info("drew %d pictures", len(jobs))
    stack = np.load(cache)["pictures"]
    return {(name, style): stack[i * len(STYLES) + j] for i, name in enumerate(names) for j, style in enumerate(STYLES)}


def composite(picture: NDArray[np.uint8], background: tuple[int, int, int] = (255, 255, 255)) -> NDArray[np.float32]:
    """RGBA uint8 (H, W, 4) over a plain colour -> RGB float32 (H, W, 3) in [0, 1]."""
    rgba = picture.astype(np.float32) / 255
    alpha = rgba[..., 3:]
    colour = np.asarray(background, np.float32) / np.float32(255)
    out: NDArray[np.float32] = rgba[..., :3] * alpha + colour * (1 - alpha)
    return out
