#!/bin/bash
# Downloads the foreign consumer's Kafka client into the folder $1 and prints where it stands,
# for PYTHONPATH. Done before: prints at once.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
downloads=$1
pins=$here/requirements.txt
name=$downloads/confluent-kafka-2.11.1

mkdir -p "$downloads"
exec 9> "$downloads/.lock-foreign"
flock 9
if ! cmp -s "$name/.pinned" "$pins"; then
    new=$(mktemp -d "$downloads/.foreign.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes \
        --dest "$new/wheel" --requirement "$pins" >&2
    python3 -m zipfile -e "$new"/wheel/*.whl "$new/client"
    cp "$pins" "$new/client/.pinned"
    rm -rf "$name"
    mv "$new/client" "$name"
fi
echo "$name"
