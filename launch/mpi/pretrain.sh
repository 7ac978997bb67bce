#!/usr/bin/env bash
# Pretrain under mpirun: one MPI rank for each GPU. Ranks are found in what mpirun tells them, rank 0's address by mpi4py.
#
#   launch/mpi/pretrain.sh -n 8 -- --recipe launch/recipes/nezha-base.toml --set run.folder=runs/first   # this machine
#   launch/mpi/pretrain.sh --host node1:8,node2:8 -n 16 -- --recipe …                                   # by ssh
#   launch/mpi/pretrain.sh --hostfile hosts -n 16 -x NCCL_DEBUG=INFO -- --recipe …
#
# What stands before `--` goes to mpirun (Open MPI 4 or 5), what follows to `nezha-ds pretrain`. On several nodes the
# recipe, the data and run.folder must be on a disk that all share, this folder too, and mpi4py be installed
# (`pip install 'nezha-ds[mpi]'`), unless MASTER_ADDR names rank 0's host.
#
# TERM, INT or USR1 to this script: every rank saves at the end of its step, and the script ends with 75; the same
# command goes on from there. Exit codes are the ranks': 0 done, 2 mend the configuration, 75 start again, 76 diverged,
# 77 restarts came no further; any other: start again. TERM to mpirun itself saves too, within GRACE, but ends with 1.
# After any code but 0 Open MPI 4 sits out twice GRACE before it ends, though no rank lives any more.
#
# Variables, all optional; those that begin with NCCL_, GLOO_, NEZHA_, AWS_ or OMP_ reach all ranks too:
#   PYTHON            the interpreter (default: .venv/bin/python here, else python3)
#   SCRIPT            a Python file that each rank runs instead of `nezha-ds pretrain`
#   GRACE             seconds until ranks that were told to stop are killed (default: 30)
#   OMP_NUM_THREADS   threads of a rank (default: its share of the node's cores)
#   TORCH_EXTENSIONS_DIR   compiled parts (default: a folder of each machine's own in ~/.cache/nezha_ds)
#
set -euo pipefail

if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
    sed -n '2,/^set/ { /^set/d; s/^# \{0,1\}//p }' "$0"
    exit 0
fi
if ! command -v mpirun >/dev/null; then
    echo "pretrain.sh: there is no mpirun here; install Open MPI (Debian: openmpi-bin) or load your site's module" >&2
    exit 2
fi

mpi=()
while [[ $# -gt 0 && $1 != -- ]]; do
    mpi+=("$1")
    shift
done
[[ $# -eq 0 ]] || shift # the --

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
program=("$python" -u)
if [[ -n ${SCRIPT:-} ]]; then program+=("$SCRIPT"); else program+=(-m nezha_ds.cli pretrain); fi

# Ranks on other nodes get only what is named here.
while read -r name; do mpi+=(-x "$name"); done < <(
    compgen -e | grep -E '^(NCCL_|GLOO_|NEZHA_|AWS_|OMP_|MASTER_|TORCH_EXTENSIONS_DIR$|PYTHONPATH$|PATH$|LD_LIBRARY_PATH$)'
)
# Open MPI binds each rank to one core by default, and its threads with it. Without the second option, ranks that were
# told to end have one second; without the third, it refuses to start as root, as which containers run.
options=(--bind-to none --mca odls_base_sigkill_timeout "${GRACE:-30}")
if [[ $EUID -eq 0 ]]; then options+=(--allow-run-as-root); fi

mpirun "${options[@]}" "${mpi[@]}" "${program[@]}" "$@" &
mpirun=$!
# mpirun forwards USR1 and then answers with the ranks' exit code; a TERM it answers with 1.
trap 'kill -USR1 "$mpirun" 2>/dev/null || true' TERM INT USR1
code=0
wait "$mpirun" || code=$?
while kill -0 "$mpirun" 2>/dev/null; do # a signal ended the wait, not mpirun
    code=0
    wait "$mpirun" || code=$?
done
exit "$code"
