"""Folders of detectors and segmenters below models/, and when something may be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture()
def folders(comfy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with a models folder of its own and no kind registered."""
    from likeness.nodes.host import network_folders

    known = {kind: value for kind, value in comfy.folder_paths.folder_names_and_paths.items() if kind == "loras"}
    monkeypatch.setattr(comfy.folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(comfy.folder_paths, "models_dir", str(tmp_path))
    return network_folders


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).write_bytes(b"{}")
    return folder


def test_what_is_listed(folders: Any, tmp_path: Path) -> None:
    """Folders with a config.json, two deep, and single files; no other thing. Fails if a pack's own folder of that
    kind, registered before, is forgotten."""
    assert folders.network_folders("sams", "sam2") == {}
    make(tmp_path / "sams" / "vit-b")
    make(tmp_path / "sam2" / "facebook" / "tiny")
    make(tmp_path / "sam2" / "a" / "too" / "deep")
    make(tmp_path / "sam2" / ".hidden")
    (tmp_path / "sams" / "sam_vit_h.pth").write_bytes(b"")
    (tmp_path / "sams" / "notes.md").write_bytes(b"")
    assert list(folders.network_folders("sam2", "sams")) == ["sam2/facebook/tiny", "sams/sam_vit_h.pth", "sams/vit-b"]
    assert folders.chosen_folder("sam2/facebook/tiny", "sam2") == tmp_path / "sam2" / "facebook" / "tiny"
    with pytest.raises(ValueError, match="no model 'sam2/"):
        folders.chosen_folder("sam2/../x", "sam2", "sams")
    elsewhere = make(tmp_path / "elsewhere" / "big")
    folders.folder_paths.add_model_folder_path("grounding-dino", str(elsewhere.parent))
    assert folders.network_folders("grounding-dino") == {"grounding-dino/big": elsewhere}


def test_downloads_only_when_asked(folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off: refused. On: fetched once into the models folder, no pickles; then it is there without asking again."""
    import huggingface_hub

    asked: list[tuple[str, Any]] = []

    def fetch(name: str, *, local_dir: str, allow_patterns: list[str]) -> None:
        asked.append((name, allow_patterns))
        make(Path(local_dir))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ValueError, match="downloads are off"):
        folders.hub_folder("owner/name", False, "sam2", "facebook/x")
    assert asked == [] and not (tmp_path / "sam2").exists()
    expected = tmp_path / "sam2" / "owner--name"
    assert folders.hub_folder(" owner/name ", True, "sam2", "facebook/x") == expected
    assert folders.hub_folder("owner/name", False, "sam2", "facebook/x") == expected
    assert asked == [("owner/name", ["*.json", "*.txt", "*.safetensors"])]
    for wrong in ("", "name", "../name", "a/../b", "a/b/c", "https://x/y", "a/.."):
        with pytest.raises(ValueError, match="is no id of a model"):
            folders.hub_folder(wrong, True, "sam2", "facebook/x")


def test_a_failed_download_is_told(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hub's client raises, the message names the model, the folder and why."""
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"owner/name could not be downloaded to .*ConnectionError: no route"):
        folders.hub_folder("owner/name", True, "sam2", "facebook/x")


def test_a_changed_folder_is_seen(folders: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    before = folders.folder_stamp(folder)
    (folder / "model.safetensors").write_bytes(b"other")
    assert folders.folder_stamp(folder) != before and folders.folder_stamp(tmp_path / "none") == ""
