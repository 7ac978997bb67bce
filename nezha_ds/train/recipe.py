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
    skip_spikes: float = Field(default=0.0, ge=0)
    """So many robust deviations above the median of the last 128 steps a loss is a spike, and the step's update is left
    out; 0: none is left out, and those above 6 are counted."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints at multiples of so many steps are kept for ever; 0: none is."""
    async_save: bool = True
    """Write checkpoints while training goes on. A step waits only for the copy to the host's memory, which until all is
    written holds 8 bytes a parameter divided by the ranks, and on rank 0 another 4 bytes for every parameter."""
    save_seconds: float = Field(default=1800.0, ge=0)
    """Limit of a save, from its copy until it is committed: then the run ends with exit code 79; 0: none."""
    ledger: bool = False
    """Note the samples of every step in FOLDER/ledger, the proof that none was lost or repeated: 8 bytes a sample."""
    checkpoint_activations: int = Field(default=0, ge=0)
    """Blocks, from the first on, that compute their inside again in backward instead of keeping it: memory for time."""
    compile: bool = False
    """Compile the model with torch.compile; needs a C++ compiler, and minutes at the start."""
    emulate_fp16: bool = False
    """Let an fp16 JSON run on a device without fp16, a CPU: exact and very slow, for tests."""
    step_seconds: float = Field(default=0.0, ge=0)
    """Longest time of a step, or of a batch in an evaluation; ten times as long for the first, which may compile, and
    for a save. Then every rank's stacks go into the log and the run ends with exit code 79. 0: any time; give ten
    usual steps where nobody watches."""
    max_idle_restarts: int = Field(default=3, ge=0)
    """Attempts in a row that may end before they saved anything new, until a start is refused with exit code 77; 0: any
    number."""


class RunSettings(Settings):
    """Where a run lives."""

    folder: Path
    """Checkpoints, metrics.jsonl and the resolved recipe. The same folder again goes on where it was."""
    init_from: Path | None = None
    """Another run's folder, or a checkpoint: this run begins from its weights and moments, with step and schedule anew;
    once it has a checkpoint of its own, it goes on from there."""
    copy_to: str = ""
    """A URI of this run's own, such as "s3://bucket/runs/first": it gets a copy of every checkpoint, and the run goes
    on from there when its folder has none. Nothing is ever removed there."""
    prepare: tuple[str, ...] = ()
    """Text to prepare into data.shards when that folder is not there yet; "embedded" is the shipped corpus."""
    tensorboard: bool = False
    """Write every record's numbers into FOLDER/tensorboard too, for TensorBoard; needs `nezha-ds[tensorboard]`."""


class Recipe(Settings):
    """A whole recipe, one table of TOML a section."""

    run: RunSettings
    data: DataSettings
    masking: MaskingSettings = MaskingSettings()
    model: ModelSettings = ModelSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    train: TrainSettings = TrainSettings()
    exporter: ExporterSettings = ExporterSettings()
