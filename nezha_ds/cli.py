"""`nezha-ds COMMAND`: one function for each command, each importing only what it needs.

torch and DeepSpeed take two seconds to import, which `prepare` and `--help` need not wait for. An error of ours is one
line on stderr and its exit code, 2; anything else is a fault of ours and keeps its traceback.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nezha_ds.arguments import parser
from nezha_ds.errors import ConfigError, DivergedError, NezhaError
from nezha_ds.world import find_world

if TYPE_CHECKING:
    from nezha_ds.corpus.settings import PrepareSettings

    PrepareSettingsT = TypeVar("PrepareSettingsT", bound=PrepareSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = parser().parse_args(arguments)
    try:
        return COMMANDS[given.command](given)
    except NezhaError as error:
        # Every rank finds the same fault in a recipe, or agreed on what went wrong: one of them says so.
        if not isinstance(error, ConfigError | DivergedError) or find_world().is_main:
            print(f"nezha-ds: {error}", file=sys.stderr)  # noqa: T201 - this is where errors are told
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def prepare(given: argparse.Namespace) -> int:
    """Text into shards."""
    from nezha_ds.corpus.prepare import prepare as prepare_corpus
    from nezha_ds.corpus.settings import PrepareSettings

    prepare_corpus(_text_settings(PrepareSettings, given))
    return 0


def vocab(given: argparse.Namespace) -> int:
    """Text into a vocabulary."""
    from nezha_ds.corpus.vocabulary import VocabularySettings, train_vocabulary

    train_vocabulary(_text_settings(VocabularySettings, given))
    return 0


def _text_settings(kind: type["PrepareSettingsT"], given: argparse.Namespace) -> "PrepareSettingsT":
    """The settings of a command that reads text."""
    from nezha_ds.config import build, read_toml, set_dotted, set_value
    from nezha_ds.corpus.settings import parse_sources

    if not given.recipe and not (given.out and (given.inputs or given.source)):
        given.refuse("without --recipe, --out and INPUT or --source are required")
    # 1. the recipe; 2. --set; 3. all other flags.
    tree = read_toml(given.recipe) if given.recipe else {}
    for override in (*given.set, *(f"clean.{override}" for override in given.cleaning)):
        set_dotted(tree, override)
    for name in kind.model_fields:
        value = getattr(given, name, None)
        if value is not False and value not in (None, []):  # as flags are that were not given
            tree[name] = value
    if given.cased:
        tree["lowercase"] = False
    for source, values in parse_sources(given.source).items():
        for name, value in values.items():
            set_value(tree, ("sources", source, name), value)
    return build(kind, tree, str(given.recipe or "the command line"))


def inspect(given: argparse.Namespace) -> int:
    """Statistics of a prepared folder, and samples: for the terminal, for a browser, for machines."""
    from rich.console import Console

    from nezha_ds.config import build
    from nezha_ds.corpus.inspect import as_json, folder_vocabulary, statistics
    from nezha_ds.corpus.page import page
    from nezha_ds.corpus.report import REPORT, folder_report, show_report
    from nezha_ds.corpus.terminal import show, table
    from nezha_ds.data.preview import preview
    from nezha_ds.data.settings import DataSettings, MaskingSettings
    from nezha_ds.files import write_atomically
    from nezha_ds.shelf import open_shelf

    chosen = {name: getattr(given, name) for name in ("length", "format", "pairing")} | {"shards": given.folder}
    settings, shelf = build(DataSettings, chosen, "the command line"), open_shelf(given.folder)
    shelf.bring(REPORT)
    found, report = statistics(shelf, progress=True), folder_report(shelf.folder)
    vocabulary = folder_vocabulary(shelf.folder, found.manifest)
    masks = preview(settings, MaskingSettings(method=given.masking), given.seed, vocabulary, given.samples)
    if given.json:
        print(json.dumps(as_json(found, masks, vocabulary, report), ensure_ascii=False, indent=1))  # noqa: T201
    else:
        console = Console()
        console.print(table(found, masks))
        if report:
            show_report(report, console)
        show(masks.rows, vocabulary, console)
    if given.html:
        write_atomically(given.html, page(shelf.folder, found, masks, vocabulary, report))
        print(f"{given.html} holds the page", file=sys.stderr)  # noqa: T201 - stdout may be JSON
    return 0


def pretrain(given: argparse.Namespace) -> int:
    """One rank of a run."""
    from nezha_ds.config import load
    from nezha_ds.observe.log import set_up_logging
    from nezha_ds.train.orphan import stop_with_launcher
    from nezha_ds.train.preempt import StopFlag

    world = find_world()
    set_up_logging(world)
    stop = StopFlag()
    stop_with_launcher()
    # What takes seconds to import comes behind what notes signals.
    from nezha_ds.train.ds_config import load_ds_config
    from nezha_ds.train.recipe import Recipe
    from nezha_ds.train.run import pretrain as run

    begins = [f"run.init_from={json.dumps(given.init_from, ensure_ascii=False)}"] if given.init_from else []
    recipe = load(Recipe, given.recipe, [*given.set, *begins])
    return run(recipe, load_ds_config(given.deepspeed_config, world.world_size), world, stop)


def launch(given: argparse.Namespace) -> int:
    """This node's ranks of a run."""
    from nezha_ds.observe.log import set_up_logging
    from nezha_ds.train.launcher import launch as launch_ranks
    from nezha_ds.train.launcher import rank_command, worlds_of
    from nezha_ds.world import World

    set_up_logging(World())
    worlds = worlds_of(given.ranks, given.nodes, given.node_rank)
    return launch_ranks(rank_command(given.script, given.arguments, given.doctor), worlds, given.master, given.grace)


def scale_lr(given: argparse.Namespace) -> int:
    """What to write into a DeepSpeed JSON for another batch."""
    from nezha_ds.train.ds_config import load_ds_config, scaled

    for key, value in scaled(load_ds_config(given.ds_config, 1), given.batch).items():
        print(f'"{key}": {json.dumps(value)}')  # noqa: T201
    return 0


def export(given: argparse.Namespace) -> int:
    """The newest checkpoint of a run as a model folder."""
    from nezha_ds.train.export import export as export_run

    checkpoint = export_run(given.run_folder, given.out)
    print(f"{given.out} holds the model of {checkpoint.name}")  # noqa: T201
    return 0


def replay(given: argparse.Namespace) -> int:
    """The step of a dump once more; 1 when it comes out otherwise."""
    from nezha_ds.train.replay import replay as compute_again
    from nezha_ds.train.replay import to_text

    found = compute_again(given.dump, given.device)
    print(to_text(found))  # noqa: T201
    return 1 if found.differences else 0


def convert(given: argparse.Namespace) -> int:
    """Somebody else's model folder as ours, or ours as Huawei's."""
    from nezha_ds.model.convert import convert as convert_folder

    chosen = {"form": given.to, "vocabulary": given.vocabulary, "resize": given.resize, "activation": given.activation}
    for line in convert_folder(given.source, given.out, **chosen):
        print(line)  # noqa: T201
    return 0


def onnx(given: argparse.Namespace) -> int:
    """A model folder as one ONNX file."""
    from nezha_ds.model.onnx import export_onnx

    export_onnx(given.folder, given.out, given.scores)
    return 0


def fill_mask(given: argparse.Namespace) -> int:
    """Candidates for each [MASK] of a text."""
    from nezha_ds.model.fill_mask import fill_mask as fill

    for candidates in fill(given.folder, given.text, given.top):
        print("  ".join(f"{one.token} {one.probability:.1%}" for one in candidates))  # noqa: T201
    return 0


def doctor(given: argparse.Namespace) -> int:
    """Whether this machine is fit for a run; with --cluster, as one rank, whether all nodes are."""
    if given.cluster:
        from nezha_ds.train.cluster.command import doctor_cluster

        return doctor_cluster(given)
    from nezha_ds.train.doctor import examine, exit_code, show

    findings = examine(given.folder or Path())
    show(findings)
    return exit_code(findings)


def hash_password(given: argparse.Namespace) -> int:
    """A user of the exporter."""
    import getpass

    from nezha_ds.observe.passwords import users_line

    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    print(users_line(given.name, password))  # noqa: T201
    return 0


def watch(given: argparse.Namespace) -> int:
    """A run in the terminal, until Ctrl-C."""
    from rich.console import Console

    from nezha_ds.show.watch import watch as watch_run

    watch_run(given.run, given.once, given.every, Console())
    return 0


def report(given: argparse.Namespace) -> int:
    """Runs as one page."""
    from nezha_ds.files import make_folder, write_atomically
    from nezha_ds.show.page import page
    from nezha_ds.show.run import read_runs

    html = page(read_runs(given.runs))
    make_folder(given.out.parent)
    write_atomically(given.out, html)
    print(f"{given.out} holds the report, {len(html) / 1e3:.0f} kB")  # noqa: T201
    return 0


def bench_loader(given: argparse.Namespace) -> int:
    """What this node can feed."""
    import json

    from rich.console import Console

    from nezha_ds.config import build, read_toml, set_dotted
    from nezha_ds.data.bench import BenchSettings, StreamSettings, measure, show, to_dict
    from nezha_ds.train.recipe import Recipe

    if given.folder is None and given.recipe is None:
        raise ConfigError("nothing to read; name a prepared folder, or a recipe with --recipe")
    origin, tree = str(given.recipe or "the command line"), read_toml(given.recipe) if given.recipe else {}
    for override in given.set:
        set_dotted(tree, override)
    flags = {
        "data.shards": given.folder,
        "data.length": given.length,
        "data.format": given.format,
        "masking.method": given.masking,
    }
    for key, value in flags.items():
        if value is not None:
            set_dotted(tree, f"{key}={json.dumps(value)}")
    stream = build(Recipe if given.recipe else StreamSettings, tree, origin)
    chosen = {name: value for name in BenchSettings.model_fields if (value := getattr(given, name, None)) is not None}
    bench = build(BenchSettings, chosen, "the command line")
    with Console(stderr=True).status("reading") as status:
        report = measure(
            stream.data, stream.masking, bench, lambda done, total: status.update(f"planned {done} of {total} shards")
        )
    if given.json:
        print(json.dumps(to_dict(report), indent=1))  # noqa: T201
    else:
        show(report, Console())
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "prepare": prepare,
    "vocab": vocab,
    "inspect": inspect,
    "pretrain": pretrain,
    "launch": launch,
    "scale-lr": scale_lr,
    "export": export,
    "replay": replay,
    "convert": convert,
    "onnx": onnx,
    "fill-mask": fill_mask,
    "doctor": doctor,
    "hash-password": hash_password,
    "watch": watch,
    "report": report,
    "bench-loader": bench_loader,
}


if __name__ == "__main__":
    sys.exit(main())
