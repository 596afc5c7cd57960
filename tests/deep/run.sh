#!/usr/bin/env bash
#
# The same tests as CI runs, with sizes that CI has no time for. Each variable may be set to another number.
#
#   tests/deep/run.sh [NAME...]     all, or those tests of tests/image whose names contain NAME
#   tests/deep/run.sh publish       runs killed, and two publishers at once, more often
#
# As root, on a host that tests/run.sh has run on (it installs what is needed). Files go to /dev/shm where there is room.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Empty files in one layer, in one directory of the next, and as many directories; memory stays below 200 MiB.
export SLURM_FACTORY_TEST_EMPTY_FILES=${SLURM_FACTORY_TEST_EMPTY_FILES:-1000000}
# Mebibytes in one layer, packed with gzip and with zstd; memory stays below 200 MiB. Three times as much room is needed in TMPDIR.
export SLURM_FACTORY_TEST_LAYER_MEBIBYTES=${SLURM_FACTORY_TEST_LAYER_MEBIBYTES:-4096}
# Images of random layers, compared with umoci's trees. SLURM_FACTORY_TEST_RANDOM_SEED begins with another seed.
export SLURM_FACTORY_TEST_RANDOM_IMAGES=${SLURM_FACTORY_TEST_RANDOM_IMAGES:-200}
# Pulls killed at any time.
export SLURM_FACTORY_TEST_KILLS=${SLURM_FACTORY_TEST_KILLS:-300}
# Suites whose minbase is made by mmdebstrap and compared with umoci's tree.
export SLURM_FACTORY_TEST_SUITES=${SLURM_FACTORY_TEST_SUITES:-bookworm trixie}

if [[ ${1:-} == publish ]]; then
    # Publications killed at random times, rounds of two publishers at once, and each request failing in each of the seven ways.
    export SLURM_FACTORY_TEST_PUBLISH_KILLS=${SLURM_FACTORY_TEST_PUBLISH_KILLS:-20}
    export SLURM_FACTORY_TEST_PUBLISH_ROUNDS=${SLURM_FACTORY_TEST_PUBLISH_ROUNDS:-50}
    export SLURM_FACTORY_TEST_PUBLISH_WAYS=${SLURM_FACTORY_TEST_PUBLISH_WAYS:-7}
    cargo test --locked --test buildcache -- --nocapture --test-threads 1 oci:: s3::
    exec cargo test --locked --test publish -- --nocapture --test-threads 1 kill:: publishers:: faults:: registries::
fi

names=("$@")
((${#names[@]})) || names=(bounds:: hostile:: kill:: random:: unpack::)
exec cargo test --locked --test image -- --nocapture --test-threads 1 "${names[@]}"
