"""From a recipe and a DeepSpeed JSON to a finished run folder.

    FOLDER/
      recipe.toml ds_config.json   what was asked for, resolved: the folder is its own recipe
      environment.json             versions, code revision, world, command
      metrics.jsonl                every event, always
      checkpoints/step-…           see checkpoint.py
      summary.json                 what the run came to

What can be checked without a device is checked before ranks meet: the recipe, the JSON, the text, the shards. The same
command on the same folder goes on where it was; a finished run is left alone.
"""

import logging
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import nezha_ds
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import ConfigError, Exit
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.flops import step_flops
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.model.positions import KINDS
from nezha_ds.objectives import ObjectiveSettings
from nezha_ds.observe.events import Observer, Save, Start
from nezha_ds.observe.exporter import open_exporter
from nezha_ds.observe.journal import METRICS_FILE, MetricsFile
from nezha_ds.observe.log import Console
from nezha_ds.observe.report import to_text
from nezha_ds.train.checkpoint import State, check_belongs, newest_sound, prune, read_state, restore, save
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.engine import Engine, describe_accelerator, join_ranks, leave_ranks
from nezha_ds.train.folder import CHECKPOINTS, conclude, open_folder
from nezha_ds.train.loop import Job, fit
from nezha_ds.train.precision import settle_precision
from nezha_ds.train.preempt import StopFlag
from nezha_ds.train.ranks import Ranks
from nezha_ds.train.recipe import Recipe, TrainSettings
from nezha_ds.train.source import Source, check_source, open_source, prepare_if_missing
from nezha_ds.world import World, variable

log = logging.getLogger(__name__)


def pretrain(recipe: Recipe, ds_config: DeepSpeedConfig, world: World) -> int:
    """Run or go on with a run, as one rank of it; the exit code, `Exit.DONE` or `Exit.STOPPED`. Errors are ours."""
    stop = StopFlag()
    _check(recipe)
    settle_precision(describe_accelerator(), ds_config, recipe.train.emulate_fp16, loud=world.is_main)
    if world.is_main:
        prepare_if_missing(recipe)
        check_source(recipe)
    join_ranks(world)
    try:
        return _train(recipe, ds_config, Ranks(world), stop)
    finally:
        leave_ranks()


def freeze_unused(model: NezhaForPreTraining, objective: ObjectiveSettings) -> None:
    """Leave the pooler and BERT's two heads as they are when nothing trains them.

    Without gradients they would decay under ZeRO, whose buffer holds zeros for them, and not without it.
    """
    used = {
        model.mlm: objective.mlm,
        model.nsp: objective.nsp,
        model.encoder.pooler: objective.nsp or objective.sop,
    }
    for part, weight in used.items():
        part.requires_grad_(weight > 0)


def speed_up(model: NezhaForPreTraining, settings: TrainSettings) -> None:
    """What the recipe says of memory and speed: blocks that compute their inside twice, and torch.compile, in place."""
    model.encoder.checkpointed = settings.checkpoint_activations
    if settings.compile:
        # Shapes are static: every micro-batch has the same size, and evaluation one of its own.
        model.compile(dynamic=False)


def _check(recipe: Recipe) -> None:
    """What can be seen to be wrong before ranks meet and a device is touched."""
    _check_model(recipe)
    _check_objective(recipe.objective, recipe.data, recipe.masking)
    if recipe.run.prepare and recipe.data.mixture:
        raise ConfigError(
            "run.prepare fills data.shards, and the recipe reads a mixture; prepare its folders with `nezha-ds prepare`"
        )


def _check_model(recipe: Recipe) -> None:
    longest, positions = recipe.model.max_position_embeddings, recipe.model.positions
    if recipe.data.length > longest:
        why = f"positions = {positions!r} end there" if KINDS[positions].bounded else "no weights depend on it"
        raise ConfigError(
            f"data.length {recipe.data.length} is above model.max_position_embeddings {longest}; raise that, {why}"
        )
    if recipe.train.checkpoint_activations > recipe.model.num_hidden_layers:
        raise ConfigError(
            f"train.checkpoint_activations {recipe.train.checkpoint_activations} is above model.num_hidden_layers "
            f"{recipe.model.num_hidden_layers}; set it to that for every block"
        )
    if recipe.train.compile and not shutil.which(compiler := variable("CXX", "g++")):
        raise ConfigError(
            f"train.compile = true needs a C++ compiler, and there is no {compiler} on PATH; install g++, "
            "or set train.compile=false"
        )


def _check_objective(objective: ObjectiveSettings, data: DataSettings, masking: MaskingSettings) -> None:
    """Whether the samples have what the losses need."""
    if objective.nsp and not data.pairs:
        raise ConfigError(
            f"objective.nsp = {objective.nsp} needs samples that are pairs, and data.format {data.format!r} cuts none; "
            "set data.format=segment-pair or objective.nsp=0"
        )
    if objective.nsp and data.pairing == "sentence-order":
        raise ConfigError(
            f"objective.nsp = {objective.nsp} asks whether a segment follows, and with data.pairing "
            f"{data.pairing!r} all do; set data.pairing=next-sentence or objective.nsp=0"
        )
    if objective.sop and data.pairing != "sentence-order":
        raise ConfigError(
            f"objective.sop = {objective.sop} asks which of two segments came first, and with data.pairing "
            f"{data.pairing!r} they always stand in order; set data.format=segment-pair and "
            "data.pairing=sentence-order, or objective.sop=0"
        )
    if objective.span and masking.method != "span":
        raise ConfigError(
            f"objective.span = {objective.span} asks what stands between two tokens, and masking.method "
            f"{masking.method!r} does not tell which; set masking.method=span or objective.span=0"
        )


def _train(recipe: Recipe, ds_config: DeepSpeedConfig, ranks: Ranks, stop: StopFlag) -> int:
    world, folder = ranks.world, recipe.run.folder
    source = open_source(recipe, ranks)
    vocabulary = source.vocabulary
    config = recipe.model.resolve(len(vocabulary), vocabulary.pad_id, **recipe.objective.heads)
    model = NezhaForPreTraining(config, seed=recipe.train.seed)
    freeze_unused(model, recipe.objective)
    speed_up(model, recipe.train)
    if world.is_main:
        open_folder(recipe, ds_config, sum(parameter.numel() for parameter in model.parameters()), world)
    engine = Engine(model, ds_config, recipe.train.steps, world)
    state = _resume(folder / CHECKPOINTS, engine, State.fresh(recipe, ds_config, config, source.fingerprint), ranks)
    if state.step >= recipe.train.steps:
        log.info("%s is done: step %d of %d; raise train.steps to go on", folder, state.step, recipe.train.steps)
        return Exit.DONE
    observers = _observers(recipe, world)
    job = Job(
        engine=engine,
        ranks=ranks,
        batches=source.training(engine, state.samples),
        heldout=(lambda: source.heldout(engine)) if recipe.train.eval_samples and source.has_heldout else None,
        objective=recipe.objective,
        settings=recipe.train,
        observers=observers,
        stop=stop,
        save=_saver(folder / CHECKPOINTS, engine, ranks, state, source, observers),
        sample_flops=_sample_flops(recipe, config),
    )
    try:
        job.tell(_start_event(recipe, ds_config, state.step, world, job.batches.sources))
        with job.batches:
            finished = fit(job, state.step)
    finally:
        for observer in observers:
            observer.close()
    if world.is_main:
        log.info("%s", to_text(conclude(folder)))
    if not finished:
        log.info("stopped and saved; start the same command again to go on")
    return Exit.DONE if finished else Exit.STOPPED


def _resume(root: Path, engine: Engine, fresh: State, ranks: Ranks) -> State:
    """The state of the checkpoint to go on from, loaded into the engine; the fresh one at the beginning."""
    folder = newest_sound(root, ranks)
    if folder is None:
        return fresh
    state = read_state(folder)
    check_belongs(state, fresh, engine.config.batch.global_batch)
    restore(folder, engine, state)
    log.info("going on from %s", folder.name)
    return fresh.model_copy(update={"step": state.step, "samples": state.samples})


def _saver(
    root: Path, engine: Engine, ranks: Ranks, state: State, source: Source, observers: list[Observer]
) -> Callable[[int], None]:
    """What writes the checkpoint of a step, tells the observers how it went, and removes old ones."""
    files = source.tokenizer_files(state.model.max_position_embeddings)

    def save_step(step: int) -> None:
        started, ok = time.perf_counter(), False
        samples = step * engine.config.batch.global_batch
        try:
            now = state.model_copy(update={"step": step, "samples": samples, "counters": engine.counters()})
            save(root, engine, now, files, ranks)
            ok = True
        finally:
            event = Save(time=time.time(), step=step, ok=ok, seconds=time.perf_counter() - started)
            for observer in observers:
                observer.update(event)
        if ranks.world.is_main:
            prune(root, source.recipe.train.keep_last)

    return save_step


def _observers(recipe: Recipe, world: World) -> list[Observer]:
    folder = recipe.run.folder
    observers: list[Observer] = []
    if world.is_main:
        observers += [MetricsFile(folder / METRICS_FILE), Console(world)]
    exporter = open_exporter(recipe.exporter, world, folder.name)
    return [*observers, exporter] if exporter else observers


def _sample_flops(recipe: Recipe, config: NezhaConfig) -> int:
    predictions = recipe.masking.predictions(recipe.data.length)
    return step_flops(config, recipe.data.length, predictions, nsp=recipe.objective.nsp > 0)


def _start_event(
    recipe: Recipe, ds_config: DeepSpeedConfig, step: int, world: World, sources: tuple[str, ...]
) -> Start:
    return Start(
        time=time.time(),
        step=step,
        run=recipe.run.folder.name,
        target_steps=recipe.train.steps,
        world_size=world.world_size,
        sources=sources,
        model=recipe.model.preset,
        precision=ds_config.precision,
        zero_stage=ds_config.zero_stage,
        version=nezha_ds.__version__,
        deepspeed=version("deepspeed"),
        torch=version("torch"),
        job_id=variable("SLURM_JOB_ID"),
    )
