"""From a recipe and a DeepSpeed JSON to a finished run folder.

    FOLDER/
      recipe.toml ds_config.json   what was asked for, resolved: the folder is its own recipe
      environment.json             versions, code revision, world, command
      metrics.jsonl                every event, always
      attempts.jsonl               where each start began and how it ended, see attempts.py
      checkpoints/step-…           see checkpoint.py
      dumps/step-…                 a step that went wrong, see dump.py
      ledger/attempt-…             which samples went into which step, where `train.ledger` asks for it
      summary.json                 what the run came to

What can be checked without a device is checked before ranks meet: the recipe, the JSON, the text, the shards. The same
command on the same folder goes on where it was; a finished run is left alone.
"""

import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nezha_ds
from nezha_ds.errors import CheckpointError, DivergedError, Exit, LaunchError, LostRankError
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.flops import step_flops
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings
from nezha_ds.observe.events import Event, Observer, Start
from nezha_ds.observe.journal import METRICS_FILE, MetricsFile, highest_step
from nezha_ds.observe.log import Console
from nezha_ds.observe.report import to_text
from nezha_ds.observe.tensorboard import TENSORBOARD, TensorBoardFile
from nezha_ds.train.attempts import attempt
from nezha_ds.train.checkpoint import State, agree, check_belongs, read_state
from nezha_ds.train.checks import check_recipe
from nezha_ds.train.copies import find_anywhere, open_copier
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.engine import Engine, describe_accelerator, join_ranks, leave_ranks
from nezha_ds.train.folder import CHECKPOINTS, DS_CONFIG, DUMPS, ENVIRONMENT, RECIPE, conclude, open_folder
from nezha_ds.train.guard import Guard, is_sound
from nezha_ds.train.initial import begin_from, check_parent
from nezha_ds.train.ledger import LEDGER, Ledger, open_ledger
from nezha_ds.train.loop import Job, fit
from nezha_ds.train.memory import Memory
from nezha_ds.train.precision import settle_precision
from nezha_ds.train.preempt import StopFlag
from nezha_ds.train.presence import Presence, present
from nezha_ds.train.ranks import Ranks, telling_of_lost_ranks
from nezha_ds.train.recipe import Recipe, TrainSettings
from nezha_ds.train.restore import restore_together
from nezha_ds.train.saver import Saver
from nezha_ds.train.source import Source, check_source, open_source, prepare_if_missing
from nezha_ds.train.watchdog import Watchdog
from nezha_ds.world import World, variable

log = logging.getLogger(__name__)


def pretrain(recipe: Recipe, ds_config: DeepSpeedConfig, world: World, stop: StopFlag) -> int:
    """Run or go on with a run, as one rank of it; the exit code, `Exit.DONE` or `Exit.STOPPED`. Errors are ours."""
    check_recipe(recipe)
    settle_precision(describe_accelerator(), ds_config, recipe.train.emulate_fp16, loud=world.is_main)
    with present(recipe, world) as presence:
        return _meet(recipe, ds_config, world, stop, presence)


def _meet(recipe: Recipe, ds_config: DeepSpeedConfig, world: World, stop: StopFlag, presence: Presence) -> int:
    if world.is_main:
        stop.cut_short(lambda: _bring_text(recipe))
    try:
        join_ranks(world)
    except (LaunchError, LostRankError):
        if stop.signal:  # which the others had too, and may have ended by
            return _stopped_at_start()
        raise
    try:
        with telling_of_lost_ranks(world):
            ranks = Ranks(world)
            if stop.agreed(ranks):
                return _stopped_at_start()
            presence.pulse.hide()
            with attempt(recipe.run.folder, recipe.train.max_idle_restarts, ranks) as own:
                own.exit_code = _train(recipe, ds_config, ranks, stop, presence, own.number)
            return own.exit_code
    finally:
        leave_ranks()


def _bring_text(recipe: Recipe) -> None:
    prepare_if_missing(recipe)
    check_source(recipe)


def _stopped_at_start() -> int:
    log.info("stopped before the first step; start the same command again")
    return Exit.STOPPED


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


def _train(
    recipe: Recipe, ds_config: DeepSpeedConfig, ranks: Ranks, stop: StopFlag, presence: Presence, number: int
) -> int:
    """The exit code of attempt `number`."""
    world, folder = ranks.world, recipe.run.folder
    presence.at("starting")
    source = open_source(recipe, ranks, stop.cut_short)
    if stop.agreed(ranks):
        return _stopped_at_start()
    presence.at("starting")
    vocabulary = source.vocabulary
    config = recipe.model.resolve(len(vocabulary), vocabulary.pad_id, **recipe.objective.heads)
    model = NezhaForPreTraining(config, seed=recipe.train.seed)
    freeze_unused(model, recipe.objective)
    speed_up(model, recipe.train)
    if world.is_main:
        open_folder(recipe, ds_config, sum(parameter.numel() for parameter in model.parameters()), world)
    engine = Engine(model, ds_config, recipe.train.steps, world)
    fresh = State.fresh(recipe, ds_config, config, source.fingerprint)
    found = agree(folder / CHECKPOINTS, ranks, lambda: find_anywhere(folder / CHECKPOINTS, recipe.run.copy_to))
    begins = recipe.run.init_from if found.folder is None else None
    if begins:
        state = begin_from(begins, engine, fresh, source.tokenizer_files(config.max_position_embeddings), ranks)
    else:
        state = _resume(found.folder, engine, fresh, recipe, ranks)
    if state.step >= recipe.train.steps:
        presence.at("done")
        log.info("%s is done: step %d of %d; raise train.steps to go on", folder, state.step, recipe.train.steps)
        return Exit.DONE
    presence.pulse.mark("starting", state.step)
    journals = _journals(recipe, world)
    observers = [*journals, *presence.observers]
    guard = Guard(engine, ranks, recipe.train.skip_spikes, state, folder / DUMPS, lambda event: job.tell(event))
    job = Job(
        engine=engine,
        ranks=ranks,
        batches=source.training(engine, state.step),
        heldout=(lambda: source.heldout(engine)) if recipe.train.eval_samples and source.has_heldout else None,
        objective=recipe.objective,
        settings=recipe.train,
        observers=observers,
        stop=stop,
        guard=guard,
        watchdog=Watchdog(recipe.train.step_seconds, world),
        pulse=presence.pulse,
        memory=Memory(engine.device),
        save=_saver(engine, ranks, state, source, observers, guard),
        sample_flops=_sample_flops(recipe, config),
        ledger=open_ledger(folder / LEDGER, state.step, ranks) if recipe.train.ledger else Ledger(),
    )
    try:
        facts = {"sources": job.batches.sources, "passed_over": len(found.passed_over), "attempt": number}
        job.tell(_start_event(recipe, ds_config, state, world, facts))
        with job.batches, job.save:
            if begins:
                job.save(0)
            finished = fit(job, state.step)
        if finished:
            presence.at("done")
    finally:
        for one in (job.watchdog, *journals, job.ledger):
            one.close()
    if world.is_main:
        log.info("%s", to_text(conclude(folder)))
    if not finished:
        log.info("stopped and saved; start the same command again to go on")
    return Exit.DONE if finished else Exit.STOPPED


def _resume(folder: Path | None, engine: Engine, fresh: State, recipe: Recipe, ranks: Ranks) -> State:
    """The state of the checkpoint to go on from, loaded into the engine; the fresh one at the beginning."""
    if folder is None:
        return fresh
    state = read_state(folder)
    check_parent(state, recipe.run.init_from, recipe.run.folder)
    check_belongs(state, fresh, engine.config.batch.samples_before(state.step))
    restore_together(folder, engine, state, ranks)
    if not is_sound(engine, ranks):
        raise CheckpointError(
            f"{folder} holds weights or moments that are NaN or infinite; remove it to go on from the one before"
        )
    log.info("going on from %s", folder.name)
    kept = ("step", "samples", "counters", "parent")
    return fresh.model_copy(update={name: getattr(state, name) for name in kept})


def _saver(
    engine: Engine, ranks: Ranks, state: State, source: Source, observers: list[Observer], guard: Guard
) -> Saver:
    """What writes the checkpoints of this attempt, and tells the observers how it went."""
    run, train = source.recipe.run, source.recipe.train

    def state_at(step: int) -> State:
        if not is_sound(engine, ranks):
            raise DivergedError(
                f"step {step} made weights or moments that are NaN or infinite, and is not saved; go on from the "
                "checkpoint before with a lower learning rate"
            )
        samples, counters = engine.config.batch.samples_before(step), engine.counters() | {"losses": guard.losses}
        return state.model_copy(update={"step": step, "samples": samples, "counters": counters})

    def tell(event: Event) -> None:
        for observer in observers:
            observer.update(event)

    return Saver(
        root=run.folder / CHECKPOINTS,
        engine=engine,
        ranks=ranks,
        settings=train,
        state_at=state_at,
        files=source.tokenizer_files(state.model.max_position_embeddings),
        tell=tell,
        copier=open_copier(
            run.copy_to,
            [run.folder / name for name in (RECIPE, DS_CONFIG, ENVIRONMENT)],
            train.keep_every,
            fresh=state.step == 0,
            ranks=ranks,
        ),
    )


def _journals(recipe: Recipe, world: World) -> list[Observer]:
    """What rank 0 writes for people."""
    if not world.is_main:
        return []
    own: list[Observer] = [MetricsFile(recipe.run.folder / METRICS_FILE), Console(world)]
    return [*own, TensorBoardFile(recipe.run.folder / TENSORBOARD)] if recipe.run.tensorboard else own


def _sample_flops(recipe: Recipe, config: NezhaConfig) -> int:
    predictions = recipe.masking.predictions(recipe.data.length)
    return step_flops(config, recipe.data.length, predictions, nsp=recipe.objective.nsp > 0)


def _start_event(
    recipe: Recipe, ds_config: DeepSpeedConfig, state: State, world: World, facts: dict[str, Any]
) -> Start:
    return Start(
        time=time.time(),
        step=state.step,
        run=recipe.run.folder.name,
        target_steps=recipe.train.steps,
        world_size=world.world_size,
        model=recipe.model.preset,
        precision=ds_config.precision,
        zero_stage=ds_config.zero_stage,
        version=nezha_ds.__version__,
        deepspeed=version("deepspeed"),
        torch=version("torch"),
        job_id=variable("SLURM_JOB_ID"),
        parent=f"{state.parent.run} {state.parent.checkpoint}" if state.parent else "",
        replayed=max(0, highest_step(recipe.run.folder / METRICS_FILE) - state.step),
        **facts,
    )
