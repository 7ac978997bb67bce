"""What each command of `nezha-ds` takes, with help and examples. Imports nothing that takes time."""

import argparse
from pathlib import Path
from typing import Any

import nezha_ds

REPOSITORY = Path(nezha_ds.__file__).parents[1]
DEFAULT_RECIPE = REPOSITORY / "launch" / "recipes" / "demo.toml"
DEFAULT_DS_CONFIG = REPOSITORY / "ds_configs" / "demo.json"


def parser() -> argparse.ArgumentParser:
    """Every command with its arguments; `command` names the one that was given."""
    parser = argparse.ArgumentParser(prog="nezha-ds", description="Pretrain NEZHA on Chinese text.")
    parser.add_argument("--version", action="version", version=nezha_ds.__version__)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for add in (
        _add_prepare,
        _add_vocab,
        _add_inspect,
        _add_bench_loader,
        _add_pretrain,
        _add_launch,
        _add_scale_lr,
        _add_export,
        _add_replay,
        _add_convert,
        _add_onnx,
        _add_fill_mask,
        _add_doctor,
        _add_hash_password,
        _add_watch,
        _add_report,
    ):
        add(commands)
    return parser


def _command(commands: Any, name: str, text: str, examples: str) -> Any:
    return commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


_CLEANING = (
    "leave documents out: min_characters, max_characters, min_chinese, max_repeated_lines, max_repeated_passages, "
    "max_controls; or remove lines: boilerplate='[\"web\"]'; repeatable"
)


def _add_prepare(commands: Any) -> None:
    command = _command(
        commands,
        "prepare",
        "Turn text into shards: words, sentences and ids, in Arrow files with a manifest.",
        "  nezha-ds prepare embedded --out build/shards         the shipped novel and statutes\n"
        "  nezha-ds prepare news/*.jsonl.gz --field body --out shards\n"
        "  nezha-ds prepare wiki/ --separation line --heldout 0.01 --out shards\n"
        "  nezha-ds prepare 's3://bucket/news/**/*.parquet' --field content --out shards\n"
        "  nezha-ds prepare --source wiki:2=wiki/ --source news:1=news/ --out shards\n"
        "  nezha-ds prepare --recipe launch/recipes/prepare-sources.toml --set clean.min_chinese=0.5\n"
        "  nezha-ds prepare crawl/ --on-error skip --clean min_chinese=0.5 --near-duplicates 0.8 --out shards\n"
        "  nezha-ds prepare news/ --tokenizer byte-bpe --vocabulary tokenizer.json --out shards\n"
        "  mpirun -n 64 nezha-ds prepare news/ --executor mpi --out shards\n"
        "  srun -n 64 --mpi=pmix --kill-on-bad-exit=1 nezha-ds prepare news/ --executor mpi --out shards",
    )
    command.add_argument("--out", help="folder for the shards")
    command.add_argument("--tokenizer", choices=("bert-wordpiece", "byte-bpe"), help="BERT's (default) or RoBERTa's")
    command.add_argument(
        "--vocabulary",
        help="a vocab.txt (default: BERT-Chinese's 21,128 entries), or a tokenizer.json or folder for byte-bpe",
    )
    command.add_argument("--heldout", type=float, help="share of documents for evaluation (default: 0.02)")
    command.add_argument("--deduplicate", action="store_true", help="keep the first of equal documents only")
    command.add_argument(
        "--near-duplicates",
        type=float,
        metavar="SHARE",
        help="keep the first of documents that share so much of their passages (0.5 to 1; try 0.8)",
    )
    command.add_argument(
        "--near-values", type=int, help="hash minima by which they are compared (default: 128; more is more exact)"
    )
    _add_reading(command)


def _add_vocab(commands: Any) -> None:
    command = _command(
        commands,
        "vocab",
        "Train a vocabulary on text: what prepare takes, read and cleaned as prepare would.\n"
        "byte-bpe learns its merges inside the segmenter's words; the other kinds need no segmenter.",
        "  nezha-ds vocab embedded --out vocab.txt --size 8000\n"
        "  nezha-ds vocab law/*.jsonl.gz --field body --out law.txt --size 21128 --special [LAW] --special [ARTICLE]\n"
        "  nezha-ds vocab news/ --kind byte-bpe --out tokenizer.json --size 50000\n"
        "  nezha-ds vocab ids.txt --kind words --min-frequency 5 --out ids-vocab.txt\n"
        "\n"
        "then: nezha-ds prepare law/ --vocabulary law.txt --out shards (byte-bpe: and --tokenizer byte-bpe; ids: and\n"
        "--segmenter pretokenized)",
    )
    command.add_argument("--out", required=True, help="the file to write")
    command.add_argument(
        "--kind",
        choices=("bert-wordpiece", "byte-bpe", "words"),
        help="a vocab.txt as BERT's (default), a tokenizer.json as RoBERTa's, or a vocab.txt of whole words",
    )
    command.add_argument("--size", type=int, help="entries, special tokens included (default: 21128)")
    command.add_argument("--min-frequency", type=int, help="fewest occurrences of an entry (default: 2)")
    command.add_argument("--alphabet", type=int, help="most characters (default: two thirds of the size)")
    command.add_argument("--special", action="append", metavar="TOKEN", help="entry kept for fine-tuning; repeatable")
    _add_reading(command)


def _add_reading(command: Any) -> None:
    """What says how text is read."""
    command.add_argument(
        "inputs", nargs="*", metavar="INPUT", help='files, folders, quoted globs, s3:// and other URIs, or "embedded"'
    )
    command.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME[:WEIGHT]=INPUT",
        help="an input of a named source, with its weight beside the others' (default: no source has one, lengths "
        "decide); repeatable",
    )
    command.add_argument("--recipe", type=Path, help="TOML with any of these and more; flags override it")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override; repeatable")
    command.add_argument("--cased", action="store_true", help="keep capitals and accents")
    command.add_argument("--segmenter", help="rjieba (default), jieba, character or pretokenized")
    command.add_argument("--user-dictionary", help="words to add to rjieba's or jieba's, in jieba's format")
    command.add_argument(
        "--separation",
        help="what ends a document of plain text: blank-line (default; knows WikiExtractor's output when it sees it), "
        "line, file or wikiextractor",
    )
    command.add_argument("--field", help='field of JSON lines or column of a table (default: "text")')
    command.add_argument("--simplify", action="store_true", help="turn traditional characters into simplified ones")
    command.add_argument("--clean", dest="cleaning", action="append", default=[], metavar="NAME=VALUE", help=_CLEANING)
    command.add_argument(
        "--on-error", choices=("stop", "skip"), help="broken input: stop (default), or count and go on"
    )
    command.add_argument(
        "--executor", choices=("processes", "mpi"), help="processes (default), or the ranks of mpirun or srun"
    )
    command.add_argument("--workers", type=int, help="processes (default: one per core)")
    command.add_argument("--overwrite", action="store_true", help="replace what is there and was made otherwise")
    command.set_defaults(refuse=command.error)


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        "Tell what a prepared folder holds and what was left out, and show samples with words apart and masks on red.",
        "  nezha-ds inspect build/shards\n"
        "  nezha-ds inspect build/shards --samples 10 --masking character\n"
        "  nezha-ds inspect build/shards --html page.html         the same with charts, for a browser\n"
        "  nezha-ds inspect build/shards --samples 0 --json\n"
        "  nezha-ds inspect s3://bucket/prepared",
    )
    command.add_argument("folder", metavar="DIR", help="what prepare wrote, or the URI of a copy")
    command.add_argument("--samples", type=_count, default=4, help="samples to show (default: 4)")
    command.add_argument("--masking", default="whole-word", choices=("whole-word", "character", "n-gram", "span"))
    command.add_argument("--length", type=int, default=128, help="places of a sample (default: 128)")
    command.add_argument(
        "--format",
        default="full-sentences",
        choices=("full-sentences", "doc-sentences", "segment-pair", "sentence-pair"),
        help="what a sample is made of (default: full-sentences)",
    )
    command.add_argument(
        "--pairing",
        default="next-sentence",
        choices=("next-sentence", "sentence-order"),
        help="what a pair asks of its second segment (default: next-sentence)",
    )
    command.add_argument("--seed", type=int, default=1, help="another seed, other masks (default: 1)")
    command.add_argument("--html", type=Path, metavar="FILE", help="also write a page: one file, no network")
    command.add_argument("--json", action="store_true", help="print all statistics as one JSON object instead")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _add_pretrain(commands: Any) -> None:
    command = _command(
        commands,
        "pretrain",
        "Train, or go on where the run folder ends. One process is one rank; a launcher starts them.",
        "  deepspeed launch/pretrain.py                         the demo: shipped text, tiny model\n"
        "  deepspeed --num_accelerators 2 launch/pretrain.py --set train.steps=200\n"
        "  deepspeed launch/pretrain.py --recipe launch/recipes/nezha-base.toml \\\n"
        "      --deepspeed_config ds_configs/lamb-65536-fp16.json --set run.folder=runs/first\n"
        "  deepspeed launch/pretrain.py --recipe launch/recipes/nezha-base.toml \\\n"
        "      --deepspeed_config ds_configs/lamb-32768-fp16.json --init-from runs/first \\\n"
        "      --set run.folder=runs/second --set data.length=512\n"
        "\n"
        "exit codes: 0 done; 75 stopped and saved, start again; 79 hung, start again; do not retry: 2 mend the\n"
        "configuration first, 76 diverged, 77 no progress; any other: start again",
    )
    command.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE, help="TOML (default: %(default)s)")
    command.add_argument("--deepspeed_config", type=Path, default=DEFAULT_DS_CONFIG, help="JSON (default: %(default)s)")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override; repeatable")
    command.add_argument(
        "--init-from",
        metavar="RUN",
        help="begin a new run.folder with the weights and moments of another run, or of a checkpoint",
    )
    # The launcher passes it; the environment says the same and more.
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def _add_launch(commands: Any) -> None:
    command = _command(
        commands,
        "launch",
        "Start this node's ranks of `pretrain`, pass signals on to them, and answer with an exit code that is true.",
        "  nezha-ds launch --ranks 8 -- --recipe launch/recipes/nezha-base.toml\n"
        "  nezha-ds launch --ranks 8 --nodes 4 --node-rank 0 --master node0:29500 -- --recipe base.toml\n"
        "  nezha-ds launch --ranks 8 --nodes 4 --node-rank 0 --master node0:29500 --doctor    before a long run\n"
        "\n"
        "exit codes: those of pretrain, of the rank that tells most; 128 and a signal's number if one was killed",
    )
    command.add_argument("--ranks", type=int, required=True, help="ranks on this node: one for each GPU")
    command.add_argument("--nodes", type=int, default=1, help="nodes, each of which starts this (default: 1)")
    command.add_argument("--node-rank", type=int, default=0, help="this node's number, from 0 (default: 0)")
    command.add_argument("--master", metavar="HOST[:PORT]", help="the host of node 0, where there are several nodes")
    command.add_argument(
        "--grace",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long ranks have to end by themselves after one of them failed or stopped (default: 60)",
    )
    command.add_argument("--script", metavar="FILE", help="a Python script of your own that each rank runs instead")
    command.add_argument("--doctor", action="store_true", help="let each rank run `doctor --cluster` instead")
    command.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pretrain, behind --")


def _add_scale_lr(commands: Any) -> None:
    command = _command(
        commands,
        "scale-lr",
        "Tell the learning rate and the warm-up of a DeepSpeed JSON for another batch: by the root of the batch.",
        "  nezha-ds scale-lr ds_configs/lamb-8192-bf16.json 32768",
    )
    command.add_argument(
        "ds_config", type=Path, metavar="JSON", help="a DeepSpeed JSON whose rate is right for its batch"
    )
    command.add_argument("batch", type=int, metavar="BATCH", help="the other train_batch_size, in samples")


def _add_export(commands: Any) -> None:
    command = _command(
        commands,
        "export",
        "Write the newest sound checkpoint of a run as a Hugging Face folder.",
        "  nezha-ds export build/demo/run build/demo/model",
    )
    command.add_argument("run_folder", type=Path, metavar="RUN", help="the run's folder")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")


def _add_replay(commands: Any) -> None:
    command = _command(
        commands,
        "replay",
        "Compute a step that ended a run again, in one process: losses, norms of gradients, and the first module with\n"
        "NaN or infinity, beside what the run found. Exit code 0 when it comes out the same, 1 when it does not.",
        "  nezha-ds replay build/demo/run/dumps/step-00000042\n"
        "  nezha-ds replay runs/base/dumps/step-00031250 --device cpu",
    )
    command.add_argument("dump", type=Path, metavar="DUMP", help="a folder in RUN/dumps")
    command.add_argument("--device", choices=("cpu", "cuda"), help="where (default: a GPU if there is one)")


def _add_convert(commands: Any) -> None:
    command = _command(
        commands,
        "convert",
        "Turn a folder of NEZHA or BERT weights into one that this project and Hugging Face open, or into Huawei's.",
        "  nezha-ds convert NEZHA-Base-WWM/ nezha-base                  Huawei's PyTorch release\n"
        "  nezha-ds convert bert-base-chinese/ start                    word embeddings and layers of a BERT\n"
        "  nezha-ds convert nezha-base/ legal --vocabulary legal.txt --resize\n"
        "  nezha-ds convert build/demo/model huawei --to huawei",
    )
    command.add_argument("source", type=Path, metavar="FOLDER", help="config, weights and vocab.txt")
    command.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    command.add_argument(
        "--to", choices=("huggingface", "huawei"), default="huggingface", help="(default: %(default)s)"
    )
    command.add_argument("--vocabulary", type=Path, help="the vocab.txt of the weights, or with --resize another one")
    command.add_argument("--resize", action="store_true", help="change the vocabulary: shared entries keep their rows")
    command.add_argument(
        "--activation",
        choices=("gelu", "gelu_tanh"),
        help="GELU by erf or by tanh (default: as the config says)",
    )


def _add_onnx(commands: Any) -> None:
    command = _command(
        commands,
        "onnx",
        "Write a model folder as one ONNX file: any batch and length, for serving without PyTorch.",
        "  nezha-ds onnx build/demo/model demo.onnx\n  nezha-ds onnx build/demo/model demo.onnx --scores",
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="what export or convert wrote")
    command.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    command.add_argument("--scores", action="store_true", help="the vocabulary's scores too, not the states alone")


def _add_fill_mask(commands: Any) -> None:
    command = _command(
        commands,
        "fill-mask",
        "Guess what stands at each [MASK] of a text.",
        '  nezha-ds fill-mask build/demo/model "话说天下大势，分久必[MASK]，合久必分。"',
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="what export wrote")
    command.add_argument("text", metavar="TEXT", help="with one [MASK] or more")
    command.add_argument("--top", type=int, default=5, help="candidates (default: 5)")


def _add_doctor(commands: Any) -> None:
    command = _command(
        commands,
        "doctor",
        "Look at this machine: what would stop a run, what would slow it down, and the cure of each. With --cluster,\n"
        "as every rank of a run to be: clocks, cards, sums between ranks, bandwidth, folder, devices; a table.",
        "  nezha-ds doctor\n"
        "  nezha-ds doctor --folder /scratch/runs\n"
        "  srun --ntasks-per-node=8 nezha-ds doctor --cluster --folder /scratch/runs    in a Slurm job\n"
        "  mpirun -N 8 nezha-ds doctor --cluster --folder /scratch/runs\n"
        "  nezha-ds launch --ranks 8 --nodes 4 --node-rank 0 --master node0 --doctor    on each node, in each pod\n"
        "\n"
        "exit codes: 0 fit, 2 something failed: the last line names it",
    )
    command.add_argument("--folder", type=Path, help="where runs would be written (default: the recipe's, or here)")
    cluster = command.add_argument_group("with --cluster, under a launcher")
    cluster.add_argument("--cluster", action="store_true", help="all nodes together, one process a rank")
    cluster.add_argument("--recipe", type=Path, help="TOML that must be the same on every node, with its shards")
    cluster.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override; repeatable")
    cluster.add_argument(
        "--wait", type=float, default=60.0, metavar="SECONDS", help="for all ranks to come (default: 60)"
    )
    cluster.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="of each phase (default: 60)")
    cluster.add_argument(
        "--size", type=float, default=202.0, metavar="MB", help="of the large all-reduce (default: 202, NEZHA-base's)"
    )
    cluster.add_argument(
        "--slow",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of the others' median speed, below which a node is slow; 0: none is (default: 0.5)",
    )
    cluster.add_argument("--json", action="store_true", help="print JSON with all measurements instead of a table")


def _add_hash_password(commands: Any) -> None:
    command = _command(
        commands,
        "hash-password",
        "Make a line of the exporter's users file: the user, and a hash of the password. That is asked for, or read\n"
        "from stdin, never taken from the command line, which all users of the machine can see.",
        "  nezha-ds hash-password prometheus         prints prometheus:$scrypt$ln=15,r=8,p=3$…",
    )
    command.add_argument("name", metavar="NAME", help="the user's name")


def _add_watch(commands: Any) -> None:
    command = _command(
        commands,
        "watch",
        "Look at a run while it goes on: state, time left, loss, speed, ranks, checkpoints, troubles. Ctrl-C ends it.",
        "  nezha-ds watch runs/first\n"
        "  nezha-ds watch copied/metrics.jsonl --every 10\n"
        "  nezha-ds watch runs/first --once                   one picture, also into a file or a mail",
    )
    command.add_argument("run", type=Path, metavar="RUN", help="run folder, which need not be there yet, or a journal")
    command.add_argument("--once", action="store_true", help="draw once and end, as it does where there is no terminal")
    command.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between looks (default: 1)")


def _add_report(commands: Any) -> None:
    command = _command(
        commands,
        "report",
        "Write one HTML file about a run, or about several in the same charts: curves, speed, what happened, and\n"
        "settings. It needs no network and no other file.",
        "  nezha-ds report runs/first\n"
        "  nezha-ds report runs/first runs/second other/metrics.jsonl --out compared.html",
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or the metrics.jsonl of one")
    command.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")


def _add_bench_loader(commands: Any) -> None:
    command = _command(
        commands,
        "bench-loader",
        "Measure what this node can feed: tokens and sequences a second of one process and of one for each GPU, and\n"
        "how many GPUs of a given speed that is. Needs no GPU.",
        "  nezha-ds bench-loader build/shards --length 512\n"
        "  nezha-ds bench-loader build/shards --format segment-pair --masking span --ranks 8 --gpu-rate 580\n"
        "  nezha-ds bench-loader --recipe launch/recipes/nezha-base.toml --set data.shards=/data/shards --json",
    )
    command.add_argument("folder", nargs="?", metavar="DIR", help="prepared folder (default: the recipe's data.shards)")
    command.add_argument("--recipe", type=Path, help="TOML whose data and masking are measured")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override; repeatable")
    command.add_argument("--length", type=int, help="tokens in a sample (default: the recipe's, or 128)")
    command.add_argument("--format", help="full-sentences (default), doc-sentences, segment-pair or sentence-pair")
    command.add_argument("--masking", help="whole-word (default), character, n-gram or span")
    command.add_argument("--micro-batch", type=int, help="samples taken at once (default: 32)")
    command.add_argument("--ranks", type=int, help="processes beside each other (default: GPUs, or cores up to 8)")
    command.add_argument("--seconds", type=float, help="how long each measurement reads (default: 5)")
    command.add_argument(
        "--gpu-rate", type=float, metavar="SEQ/S", help="sequences a second of one GPU, as you measured"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
