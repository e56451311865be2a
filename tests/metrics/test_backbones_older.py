"""Many users' hosts have transformers 4: tests of metrics that use it, once more with that, in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FILES = [
    str(Path(__file__).with_name(name))
    for name in ("test_backbones.py", "test_image_reward.py", "test_maniqa.py", "test_judge_local.py")
]
CHOSEN = "library or class_token or wrong_weights_are or pickled or table or authors or greedily"


def test_with_transformers_4(transformers4: dict[str, str]) -> None:
    """Fails if one of those tests does, or if they did not run with transformers 4 after all."""
    from likeness.devtools.paths import ROOT

    code = "import sys, pytest, transformers; print(transformers.__version__); sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-p", "no:cacheprovider", *FILES, "-k", f"({CHOSEN}) and not open_clip and not timm"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=transformers4, capture_output=True, text=True
    )
    assert ran.stdout.startswith("4."), ran.stdout[:200] + ran.stderr[-2000:]
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None and int(passed[1]) >= 11, ran.stdout[-500:]
