"""The recipe: everything about a run that DeepSpeed has no key for, composed of the settings of each room."""

from pathlib import Path

from pydantic import Field

from nezha_ds.config import Settings
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.model.config import ModelSettings
from nezha_ds.objectives import ObjectiveSettings
from nezha_ds.observe.exporter import ExporterSettings


class TrainSettings(Settings):
    """How long to train, and what happens on the way."""

    steps: int = Field(default=1000, ge=1)
    """Optimizer steps of the whole run, across restarts."""
    seed: int = Field(default=1, ge=0)
    """Decides initial weights, order, masks and dropout."""
    log_every: int = Field(default=10, ge=1)
    """Steps between records in metrics.jsonl, on the console and in the exporter."""
    eval_every: int = Field(default=500, ge=0)
    """Steps between evaluations on held-out text; 0: only at the end."""
    eval_samples: int = Field(default=512, ge=0)
    """Held-out samples of an evaluation, always the same with the same masks; 0: never evaluate."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; there is always one at the end."""
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints that are kept; an older one goes only when a newer one has been verified."""
    checkpoint_activations: int = Field(default=0, ge=0)
    """Blocks, from the first on, that compute their inside again in backward instead of keeping it: memory for time."""
    compile: bool = False
    """Compile the model with torch.compile; needs a C++ compiler, and minutes at the start."""
    emulate_fp16: bool = False
    """Let an fp16 JSON run on a device without fp16, a CPU: exact and very slow, for tests."""


class RunSettings(Settings):
    """Where a run lives."""

    folder: Path
    """Checkpoints, metrics.jsonl and the resolved recipe. The same folder again goes on where it was."""
    prepare: tuple[str, ...] = ()
    """Text to prepare into data.shards when that folder is not there yet; "embedded" is the shipped corpus."""


class Recipe(Settings):
    """A whole recipe, one table of TOML a section."""

    run: RunSettings
    data: DataSettings
    masking: MaskingSettings = MaskingSettings()
    model: ModelSettings = ModelSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    train: TrainSettings = TrainSettings()
    exporter: ExporterSettings = ExporterSettings()
