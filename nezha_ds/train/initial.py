"""The beginning of a run from another's checkpoint: `--init-from RUN`, the second of two phases.

    kept        weights, both moments, and the number of updates in them, by which the bias correction goes on
    restarted   the step, and with it the learning rate's schedule; the samples, from number 0 of this run's own order;
                the loss scale and the count of skipped steps, as the new JSON has them
    free        text, length, batch, seed, ranks, ZeRO stage, precision, dropout, attention; and the optimizer, as long
                as it keeps exp_avg and exp_avg_sq of the gradient: Adam, AdamW and Lamb mean the same by them

The count of updates is kept because the moments are: corrected as those of a first update, a mean that is worth 7,038
of them would be multiplied by 10 and the root of the other by 32, so that the first update were 0.32 of its size and
the tenth 0.15. (NVIDIA's script sets the count to 0; its LAMB's ratio divides that out again, but for the share of the
weight decay.) Heads that the other run did not train begin as `nezha-ds convert` has it: weights drawn afresh where
there are none, and moments of zero.

The first thing such a run writes is a checkpoint of step 0, which says in state.json where it comes from, as all later
ones do. From then on it goes on from its own checkpoints and needs the other run no more.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from nezha_ds.errors import CheckpointError
from nezha_ds.model.config import NezhaConfig
from nezha_ds.model.hf import HEADS, hf_name
from nezha_ds.model.positions import KINDS
from nezha_ds.train.checkpoint import STATE, Parent, State, damage, newest_sound, read_state, restore
from nezha_ds.train.engine import Engine
from nezha_ds.train.folder import CHECKPOINTS
from nezha_ds.train.ranks import Ranks

log = logging.getLogger(__name__)

FREE = frozenset(
    """preset hidden_dropout_prob attention_probs_dropout_prob initializer_range max_position_embeddings
    attention""".split()
) | set(HEADS.values())
"""Settings of a model on which neither its tensors nor what they mean depends, and heads of its own."""

VOCABULARIES = ("vocab.txt", "tokenizer.json")
"""Files of a checkpoint that say what the ids mean: BERT's, or byte-level BPE's, of which the first that is there."""

_HEAD = re.compile(r"^(cls\.|nezha\.pooler\.)")


def begin_from(origin: Path, engine: Engine, fresh: State, files: Mapping[str, bytes], ranks: Ranks) -> State:
    """Put the weights and moments of another run into a fresh engine; `fresh`, with where they came from. Collective.

    `origin` is a run's folder, whose newest sound checkpoint is taken, or a checkpoint; `files` are this run's
    tokenizer's. CheckpointError when there is none, or when it is of another model or vocabulary.
    """
    folder = find_checkpoint(origin, ranks)
    state = read_state(folder)
    refuse_other_vocabulary(folder, files)
    refuse_other_model(folder, state.model, fresh.model)
    heads = frozenset(name for name, _ in engine.module.named_parameters() if _HEAD.match(hf_name(name)))
    updates = state.counters["updates"]
    begun = state.model_copy(update={"step": 0, "counters": engine.counters() | {"updates": updates}})
    lacking = restore(folder, engine, begun, may_lack=heads)
    parent = Parent(run=str(origin.resolve()), checkpoint=folder.name, step=state.step, samples=state.samples)
    log.info("beginning from %s: weights, moments and %d updates are kept, step and schedule restart", folder, updates)
    if lacking:
        names = sorted({name.partition(".")[0] for name in lacking})
        log.info("heads that begin afresh, as %s did not train them: %s", origin, ", ".join(names))
    if (state.seed, state.fingerprint, _length(state)) == (fresh.seed, fresh.fingerprint, _length(fresh)):
        log.warning("the same text, length and seed as in %s: the same samples with the same masks again", origin)
    return fresh.model_copy(update={"parent": parent})


def find_checkpoint(origin: Path, ranks: Ranks) -> Path:
    """The newest sound checkpoint of a run's folder, or the folder itself if it is one; collective."""
    if (origin / STATE).exists():
        if problem := ranks.gather(damage(origin) if ranks.world.is_main else "")[0]:
            raise CheckpointError(f"--init-from {origin}: {problem}; choose another checkpoint of that run")
        return origin
    if (found := newest_sound(origin / CHECKPOINTS, ranks)) is None:
        raise CheckpointError(
            f"--init-from {origin} has no checkpoint; name the run.folder of a run that has saved one"
        )
    return found


def check_parent(state: State, init_from: Path | None, folder: Path) -> None:
    """CheckpointError when a run that has begun is now to begin from elsewhere."""
    began = state.parent and state.parent.run
    if init_from and began != str(init_from.resolve()):
        raise CheckpointError(
            f"{folder} has begun already, {f'from {began}' if began else 'with weights of its own'}, and cannot begin "
            f"from {init_from}; leave --init-from out to go on with it, or choose another run.folder"
        )


def refuse_other_model(folder: Path, theirs: NezhaConfig, ours: NezhaConfig) -> None:
    """CheckpointError for a model whose tensors have other shapes or mean something else."""
    kind = KINDS[ours.positions]
    # BERT's positions are as many rows as there may be tokens.
    free = FREE - {"max_position_embeddings"} if kind.learned and kind.bounded else FREE
    for name in NezhaConfig.model_fields.keys() - free:
        one, other = getattr(theirs, name), getattr(ours, name)
        if one != other:
            raise CheckpointError(
                f"--init-from {folder}: its model has {name} = {one!r}, this run's {other!r}; "
                f"set model.{name} as it is there, or begin without --init-from"
            )


def refuse_other_vocabulary(folder: Path, files: Mapping[str, bytes]) -> None:
    """CheckpointError when the ids of this run's text mean something else to the checkpoint."""
    name = next(name for name in VOCABULARIES if name in files)
    path = folder / name
    if not path.is_file() or path.read_bytes() != files[name]:
        raise CheckpointError(
            f"--init-from {folder}: its {name} is not that of this run's text; prepare the text with it "
            f"(nezha-ds prepare --vocabulary), or take its model over with `nezha-ds convert --resize`"
        )


def _length(state: State) -> object:
    return state.recipe["recipe"].get("data", {}).get("length")
