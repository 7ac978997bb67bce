#!/usr/bin/env bash
# Builds the target `cpu` of docker/Dockerfile without a container registry, and tries the image: as another user than
# root, its root read-only, as process 1. For machines that reach no registry, and for a proof where no engine runs.
#
#     docker/build_offline.sh                      all of it, as root: 10 minutes on 2 cores, 6 GB below build/image
#     docker/build_offline.sh wheels               only the folder of wheels, to carry to where no index is
#     BASE=localhost/debian:12 docker/build_offline.sh build check
#     docker/build_offline.sh --help
#
# Needs root, and Debian's buildah and debootstrap. The steps, each of which may be asked for alone:
#
#     wheels   what the image installs, by this machine's pip and its settings, into build/image/wheels
#     base     a Debian bookworm by debootstrap, as an image; left out where BASE names one
#     build    the Dockerfile with both: no index is asked
#     check    doctor; ten steps of the demo's recipe on two ranks; and a TERM to process 1 that must end in a
#              checkpoint and exit code 75
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=$PWD/build/image
BASE=${BASE:-}
PYTHON=${PYTHON:-python3.11}
IMAGE=localhost/nezha-ds:cpu

help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; }

engine() { buildah --root "$OUT/storage" --runroot "$OUT/state" --storage-driver vfs "$@"; }

wheels() {
    mkdir -p "$OUT/wheels"
    "$PYTHON" -m pip download --quiet --dest "$OUT/wheels" --constraint constraints.txt \
        torch setuptools ninja py-cpuinfo '.[clean]'
}

base() {
    [[ -z $BASE ]] || return 0
    rm -rf "$OUT/debian"
    debootstrap --variant=minbase bookworm "$OUT/debian" ${MIRROR:+"$MIRROR"} >"$OUT/debootstrap.log"
    local container
    container=$(engine from scratch)
    engine add --quiet "$container" "$OUT/debian" /
    engine commit --quiet "$container" localhost/debian:12
    engine rm "$container"
    rm -rf "$OUT/debian"
}

build() {
    engine bud --isolation chroot --file docker/Dockerfile --target cpu --tag "$IMAGE" \
        --build-arg BASE="${BASE:-localhost/debian:12}" --build-arg PIP_NO_INDEX=1 \
        --build-context wheels="$OUT/wheels" .
    engine images "$IMAGE"
}

# A process 1 in namespaces of its own, as the image's user, without any right, on a read-only root.
inside() {
    # shellcheck disable=SC2016 # the inner shells expand
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        root=$1 runs=$2
        shift 2
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount --rbind /dev "$root/dev"
        mount --bind "$runs" "$root/runs"
        mount -o remount,bind,ro "$root"
        exec chroot "$root" /usr/bin/env --ignore-environment PATH=/opt/nezha/bin:/usr/bin:/bin HOME=/tmp PYTHONUNBUFFERED=1 \
            TORCH_EXTENSIONS_DIR=/tmp/torch_extensions DS_ACCELERATOR=cpu \
            /usr/bin/setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \
            -- sh -c "cd /usr/share/nezha-ds && exec \"\$@\"" sh "$@"
    ' inside "$ROOT" "$OUT/runs" "$@"
}

check() {
    local container steps=(--recipe launch/recipes/demo.toml --deepspeed_config ds_configs/demo.json
        --set run.folder=/runs/demo --set data.shards=/runs/shards --set train.eval_every=0
        --set train.eval_samples=32 --set train.log_every=1)
    container=$(engine from --pull-never "$IMAGE")
    ROOT=$(engine mount "$container")
    rm -rf "$OUT/runs" && install --directory --owner 10001 --group 10001 "$OUT/runs"

    echo "== doctor"
    inside nezha-ds doctor --folder /runs
    echo "== the root is read-only, and the user is not root"
    # shellcheck disable=SC2016
    inside sh -c '! touch /opt/nezha/x 2>/dev/null && [ "$(id -u)" = 10001 ] && touch /runs/x /tmp/x'
    echo "== ten steps on two ranks"
    inside nezha-ds launch --ranks 2 -- "${steps[@]}" --set train.steps=10
    [[ -f $OUT/runs/demo/checkpoints/step-00000010/manifest.json ]]
    echo "== TERM to process 1"
    told "${steps[@]}"
    engine rm "$container" >/dev/null
    echo "== the image is sound"
}

# A longer run, told to stop by its process 1 once it has done a step more.
told() {
    local begun code=0 waiting first
    begun=$(wc -l <"$OUT/runs/demo/metrics.jsonl")
    inside nezha-ds launch --ranks 2 -- "$@" --set train.steps=100000 &
    waiting=$!
    until (($(grep -c '"kind":"record"' <(tail -n "+$((begun + 1))" "$OUT/runs/demo/metrics.jsonl")) > 0)); do
        kill -0 "$waiting" || return 1
        sleep 1
    done
    first=$(pgrep --parent "$(pgrep --parent "$waiting" --full 'unshare' || echo "$waiting")" | head -n 1)
    kill -TERM "$first"
    wait "$waiting" || code=$?
    echo "exit code $code"
    ((code == 75))
    [[ $(find "$OUT"/runs/demo/checkpoints -name 'step-*' | sort | tail -n 1) > $OUT/runs/demo/checkpoints/step-00000010 ]]
}

case ${1:-} in -h | --help) help && exit 0 ;; esac
mkdir -p "$OUT"
for step in "${@:-wheels base build check}"; do
    for each in $step; do
        case $each in
        wheels | base | build | check) "$each" ;;
        *) echo "docker/build_offline.sh: no step '$each'; there are wheels, base, build, check" >&2 && exit 2 ;;
        esac
    done
done
