"""Hugging Face's own tests of Nezha, run against `nezha_ds.hf` where somebody has them: neither package ships them.

    python tests/hf/upstream.py CHECKOUT NEZHA [pytest's arguments]

CHECKOUT is a checkout of the installed transformers, for tests/test_modeling_common.py and what belongs to it; NEZHA is
tests/models/nezha/test_modeling_nezha.py, which left with 4.42:

    git clone https://github.com/huggingface/transformers
    git -C transformers show v4.41.2:tests/models/nezha/test_modeling_nezha.py > test_modeling_nezha.py

Needs `pip install parameterized httpx` besides; a minute on one core. So all that today's transformers asks of its own
models is asked of ours. `NOT_OURS` says what cannot apply; the exit code is pytest's for all the others. Tests that
need a GPU, a hub or a picture skip themselves.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

NOT_OURS = {
    "test_model_as_decoder": "NEZHA is an encoder: cross-attention and causal masks are refused, not passed over",
    "test_model_as_decoder_with_default_input_mask": "the same",
    "test_generation_tester_mixin_inheritance": "of the test's own class, which asks generation of a model without it",
}
"""Tests that cannot apply, and why."""

_ADAPTER = '''
import importlib.machinery
import sys
import types

import nezha_ds.hf

transformers = sys.modules["transformers"]
for name in nezha_ds.hf.__all__:
    setattr(transformers, name, getattr(nezha_ds.hf, name))
# As if transformers had them: its tests look classes up by the names of their auto classes, and ask a fresh import.
sys.modules["transformers.models.nezha"] = nezha_ds.hf
from transformers.models.auto import modeling_auto

for table in [table for name, table in vars(modeling_auto).items() if name.endswith("MAPPING_NAMES")]:
    if isinstance(kind := table.get("bert"), str):
        table["nezha"] = kind.replace("Bert", "Nezha")
import transformers.utils.import_utils

for module in (transformers.utils, transformers.utils.import_utils):
    module.direct_transformers_import = lambda *path: sys.modules["transformers"]


class Datasets(types.ModuleType):
    """Only the tests of other models and of pipelines with a hub use it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


sys.modules["datasets"] = Datasets("datasets")
sys.modules["datasets"].__spec__ = importlib.machinery.ModuleSpec("datasets", None)
'''


def main(checkout: Path, nezha: Path, *more: str) -> int:
    """The exit code of pytest in a folder that looks like the checkout with Nezha's tests still in it."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder), checkout.resolve(), nezha.resolve())
        for name, reason in NOT_OURS.items():
            print(f"not asked: {name} ({reason})")
        left_out = " and ".join(f"not {name}" for name in NOT_OURS)
        command = [sys.executable, "-m", "pytest", "tests/models/nezha", "-q", "-W", "ignore", "-k", left_out, *more]
        env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        return subprocess.run(command, cwd=folder, env=env | {"HF_HUB_OFFLINE": "1"}, check=False).returncode


def lay_out(folder: Path, checkout: Path, nezha: Path) -> None:
    """Links to the checkout's tests, a folder for Nezha's, and the adapter."""
    import transformers

    for name in ("utils", "pyproject.toml"):
        (folder / name).symlink_to(checkout / name)
    (folder / "src").mkdir()
    (folder / "src" / "transformers").symlink_to(Path(transformers.__file__).parent)
    home = folder / "tests" / "models" / "nezha"
    home.mkdir(parents=True)
    for path in (checkout / "tests").iterdir():
        if path.name != "models":
            (folder / "tests" / path.name).symlink_to(path)
    shutil.copy(nezha, home / "test_modeling_nezha.py")
    for package in (home, home.parent):
        (package / "__init__.py").touch()
    (folder / "conftest.py").write_text(_ADAPTER)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
