"""The pictures of docs/: `python docs/pictures.py`, five minutes on two cores; needs chromium and chromedriver.

Two small real runs on the shipped novel and statutes, of which one is stopped by a signal and killed on its way, then
`nezha-ds report` and `nezha-ds watch` of them. The runs stay in build/pictures, and what is there is not made again.
"""

import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from nezha_ds.observe.events import Record  # noqa: E402 - the repository comes first
from nezha_ds.observe.journal import METRICS_FILE, read_metrics  # noqa: E402
from nezha_ds.show.frame import Look, frame  # noqa: E402
from nezha_ds.show.state import state_of  # noqa: E402
from nezha_ds.show.story import Story  # noqa: E402
from tests.helpers.browser import Browser, browser  # noqa: E402

BUILD = ROOT / "build" / "pictures"
TEXTS = {"novel": "sanguo.txt.xz", "statutes": "statutes.txt.xz"}
RECIPE = """
[run]
folder = "{folder}"
[data]
length = 64
[data.mixture]
novel = {{ shards = "{build}/novel", weight = 1 }}
statutes = {{ shards = "{build}/statutes", weight = 2 }}
[model]
preset = "tiny"
hidden_size = 128
num_hidden_layers = 2
num_attention_heads = 4
intermediate_size = 512
hidden_dropout_prob = 0.0
attention_probs_dropout_prob = 0.0
[train]
steps = 400
log_every = 2
eval_every = 20
eval_samples = 128
save_every = 50
emulate_fp16 = {emulate}
[exporter]
enabled = false
"""
DEEPSPEED = """
{{
  "train_batch_size": 32,
  "train_micro_batch_size_per_gpu": 32,
  "gradient_clipping": 1.0,
  "optimizer": {{ "type": "{optimizer}", "params": {{ "lr": {rate}, "weight_decay": 0.01 }} }},
  "scheduler": {{ "type": "WarmupPolynomialLR", "params": {{ "warmup_ratio": 0.1, "degree": 1.0 }} }},
  {precision},
  "data_types": {{ "grad_accum_dtype": "fp32" }},
  "zero_optimization": {{ "stage": 1 }}
}}
"""
FP16 = '"fp16": { "enabled": true, "initial_scale_power": 20, "loss_scale_window": 60, "hysteresis": 1 }'
BF16 = '"bf16": { "enabled": true }'


def main() -> None:
    """Texts, runs, pictures."""
    for name, file in TEXTS.items():
        if not (BUILD / name / "manifest.json").exists():
            nezha("prepare", f"nezha_ds/assets/{file}", "--out", f"{BUILD}/{name}")
    signals = {120: signal.SIGTERM, 230: signal.SIGKILL}
    pretrain("lamb-fp16", {"optimizer": "Lamb", "rate": 0.006, "precision": FP16}, signals)
    pretrain("adamw-bf16", {"optimizer": "AdamW", "rate": 0.001, "precision": BF16}, {})
    nezha("report", f"{BUILD}/lamb-fp16", f"{BUILD}/adamw-bf16", "--out", f"{BUILD}/report.html")
    draw(BUILD / "lamb-fp16" / METRICS_FILE, BUILD / "watch.svg", step=330)
    with TemporaryDirectory() as profile, browser(Path(profile)) as window:
        photograph(window, BUILD / "report.html", "report.png", "light", 1280, 1265)
        photograph(window, BUILD / "report.html", "report-phone.png", "dark", 390, 1380)
        photograph(window, BUILD / "watch.svg", "watch.png", "light", 1360, 831)


def photograph(window: Browser, page: Path, name: str, scheme: str, width: int, height: int) -> None:
    """The upper part of a page as a window of a width shows it."""
    window.open(page)
    window.resize(width, height)
    window.media(scheme)
    part = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = window.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=part)
    (ROOT / "docs" / name).write_bytes(b64decode(shot["data"]))


def draw(journal: Path, picture: Path, step: int) -> None:
    """What `nezha-ds watch` showed when the run had come to a step."""
    story = Story()
    for event in read_metrics(journal):
        story.take(event)
        if event.step >= step and isinstance(event, Record):
            break
    assert story.last
    now = story.last.time + 1
    look = Look(story, "lamb-fp16", state_of(story, now), now, width=110, height=44)
    console = Console(record=True, width=look.width, file=StringIO(), force_terminal=True)
    console.print(frame(look))
    # rich would have the picture fetch its letters.
    drawn = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title="nezha-ds watch runs/lamb-fp16"), flags=re.DOTALL
    )
    picture.write_text(drawn.replace("Fira Code, monospace", "monospace"), encoding="utf-8")


def nezha(*arguments: str) -> None:
    """A command of ours, in its own process."""
    subprocess.run([sys.executable, "-m", "nezha_ds.cli", *arguments], cwd=ROOT, check=True)


def pretrain(name: str, deepspeed: dict[str, object], signals: dict[int, signal.Signals]) -> None:
    """One run of one rank to its end, which gets each signal once it has told of a step."""
    folder, recipe, ds_config = BUILD / name, BUILD / f"{name}.toml", BUILD / f"{name}.json"
    recipe.write_text(RECIPE.format(folder=folder, build=BUILD, emulate=str("fp16" in name).lower()))
    ds_config.write_text(DEEPSPEED.format(**deepspeed))
    command = [sys.executable, "launch/pretrain.py", "--recipe", str(recipe), "--deepspeed_config", str(ds_config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for step, what in signals.items():
        if reached(folder) < step:
            with subprocess.Popen(command, cwd=ROOT, env=env) as rank:
                while rank.poll() is None and reached(folder) < step:
                    time.sleep(0.1)
                rank.send_signal(what)
    if not (folder / "summary.json").exists() or reached(folder) < 400:
        subprocess.run(command, cwd=ROOT, env=env, check=True)


def reached(folder: Path) -> int:
    """The last step that a run tells of."""
    path = folder / METRICS_FILE
    return max((event.step for event in read_metrics(path)), default=0) if path.exists() else 0


if __name__ == "__main__":
    main()
