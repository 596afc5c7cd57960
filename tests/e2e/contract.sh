#!/usr/bin/env bash
#
# Shows that the stand-in for Spack does what real Spack does, as far as slurm-factory can tell.
#
# The end-to-end test uses the stand-in (tests/spack-standin) where there is no Spack. That is worth something only if the
# two are alike: this makes the same calls on both, on the same small environment in the same sandbox, and compares the
# lockfile, the installed prefixes with their search paths, the view, and every line on the console.
#
#   contract.sh ROOTFS SOURCES [WORK]
#       ROOTFS   a prepared root of a toolchain
#       SOURCES  what make-sources.sh made (lz4, zlib, libgcrypt and libgpg-error are enough)
#       WORK     where to build and keep what was printed; by default a folder that is removed at the end
#
# Real Spack comes from the git directories SLURM_FACTORY_TEST_SPACK and SLURM_FACTORY_TEST_SPACK_PACKAGES. Without them
# the stand-in's own tests run and the comparison does not: that is said and is no failure. Needs bwrap, and no root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
standin=$top/tests/spack-standin

die() {
    printf 'contract: %s\n' "$*" >&2
    exit 1
}

export PYTHONDONTWRITEBYTECODE=1 # on the host, nothing is written among the sources
python3 "$standin/test_standin.py" --quiet || die "the stand-in's own tests fail"

if [[ -z ${SLURM_FACTORY_TEST_SPACK:-} || -z ${SLURM_FACTORY_TEST_SPACK_PACKAGES:-} ]]; then
    printf '%s\n' \
        '****************************************************************************************************' \
        'contract: NOT RUN: the stand-in was not compared with real Spack. Set SLURM_FACTORY_TEST_SPACK and' \
        '          SLURM_FACTORY_TEST_SPACK_PACKAGES to git directories of Spack and of its recipes.' \
        '****************************************************************************************************' >&2
    exit 0
fi

[[ $# -ge 2 && $# -le 3 ]] || die "usage: contract.sh ROOTFS SOURCES [WORK]"
rootfs=$(cd "$1" && pwd)
sources=$(cd "$2" && pwd)
[[ -x $rootfs/usr/bin/gcc ]] || die "$rootfs is no prepared root: it has no gcc"
[[ -d $sources/_source-cache/archive ]] || die "$sources is no source mirror"
command -v bwrap >/dev/null || die "bwrap is not installed (package bubblewrap)"
if [[ $# -eq 3 ]]; then
    mkdir -p "$3"
    work=$(cd "$3" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi

# --- Spack and its recipes, as the catalog names them ---------------------------------------------------------------------

# reference SECTION: the tag that the catalog has
reference() {
    awk -v section="[$1]" '$0 == section { here = 1; next } /^\[/ { here = 0 }
        here && $1 == "reference" { gsub(/"/, "", $3); print $3 }' "$top/assets/catalog.toml"
}

# export_tree GIT TAG INTO
export_tree() {
    [[ -d $3 ]] && return
    mkdir -p "$3.part"
    git --git-dir="$1" archive "$2" | tar -x -C "$3.part" || die "$1 has no $2"
    mv "$3.part" "$3"
}
git_directory() {
    if [[ -d $1/.git ]]; then printf '%s/.git' "$1"; else printf '%s' "$1"; fi
}
export_tree "$(git_directory "$SLURM_FACTORY_TEST_SPACK")" "$(reference spack)" "$work/tree-spack"
export_tree "$(git_directory "$SLURM_FACTORY_TEST_SPACK_PACKAGES")" "$(reference spack-packages)" "$work/tree-packages"

# --- one sandbox for both --------------------------------------------------------------------------------------------------

printf 'root:x:0:0:root:/root:/bin/bash\nbuilder:x:1000:1000:builder:/slurm-factory.build/home:/bin/bash\n' >"$work/passwd"
printf 'root:x:0:\nbuilder:x:1000:\n' >"$work/group"
mkdir -p "$work/empty"
# A make that fails as a compiler's error makes it fail
cat >"$work/failing-make" <<'SH'
#!/bin/sh
echo "gcc -c heart.c -o heart.o"
echo "heart.c:1:25: error: 'heart' undeclared (first use in this function)"
echo "make: *** [Makefile:1: heart.o] Error 1"
exit 2
SH
chmod 0755 "$work/failing-make"

# sandbox WHO MIRROR COMMAND...: WHO is spack or standin, MIRROR a folder; `make` may name another make
make=
sandbox() {
    local who=$1 mirror=$2 spack packages other=()
    shift 2
    [[ -z $make ]] || other=(--ro-bind "$make" /usr/bin/make)
    case $who in
    spack) spack=$work/tree-spack packages=$work/tree-packages ;;
    standin) spack=$standin packages=$standin/packages ;;
    esac
    bwrap --unshare-user --uid 1000 --gid 1000 --unshare-pid --unshare-ipc --unshare-net --unshare-uts --hostname builder \
        --die-with-parent --ro-bind "$rootfs" / "${other[@]}" --proc /proc --dev /dev --tmpfs /tmp --tmpfs /run --tmpfs /opt --tmpfs /var/cache \
        --ro-bind "$work/passwd" /etc/passwd --ro-bind "$work/group" /etc/group \
        --bind "$work/$who/slot" /slurm-factory.build \
        --ro-bind "$spack" /opt/spack --ro-bind "$packages" /opt/spack-packages \
        --ro-bind "$top/assets/spack-repo" /opt/slurm-factory/repo --ro-bind "$here/spack-repo" /opt/slurm-factory/overlay/0 \
        --ro-bind "$standin/contract-repo" /opt/slurm-factory/overlay/1 \
        --ro-bind "$standin" /opt/contract \
        --ro-bind "$mirror" /var/cache/slurm-factory/mirror/0 --bind "$work/$who/source-cache" /var/cache/slurm-factory/sourcecache \
        --clearenv --setenv PATH /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --setenv LANG C.UTF-8 --setenv TZ UTC \
        --setenv HOME /slurm-factory.build/home --setenv USER builder --setenv LOGNAME builder --setenv TMPDIR /tmp \
        --setenv SPACK_DISABLE_LOCAL_CONFIG 1 --setenv SPACK_USER_CACHE_PATH /slurm-factory.build/user \
        --setenv SPACK_GNUPGHOME /slurm-factory.build/gnupg --setenv SPACK_PYTHON /usr/bin/python3 \
        --setenv PYTHONPYCACHEPREFIX /slurm-factory.build/user/pycache --setenv PYTHONUNBUFFERED 1 \
        --chdir /slurm-factory.build -- "$@"
}

# --- the configuration, in the form that slurm-factory writes -------------------------------------------------------------

# first_version WHO COMMAND...: the first dotted number that it prints
first_version() {
    local who=$1
    shift
    sandbox "$who" "$work/empty" "$@" 2>&1 | grep -o -E '[0-9]+(\.[0-9]+)+' | awk 'NR == 1'
}

external() {
    printf '  %s:\n    externals:\n    - spec: %s@%s\n      prefix: /usr\n    buildable: false\n' "$1" "$1" "$2"
}

# What Spack makes of the root, which is too long for a name that is compiled in to be short.
padding=__spack_path_placeholder__
tree=/slurm-factory.build/store/$padding/$padding/$padding/${padding:0:20}

# configure WHO NAME ZLIB SPEC...: a scope and an environment of these, with that requirement on zlib
configure() {
    local scope=$work/$1/slot/scope/$2 environment=$work/$1/slot/env/$2 build=/slurm-factory.build name=$2 zlib=$3
    shift 3
    mkdir -p "$scope" "$environment"
    cat >"$scope/config.yaml" <<YAML
config:
  install_tree:
    root: $build/store
    padded_length: 128
    projections:
      all: "{name}-{version}-{hash}"
  build_stage:
  - $build/stage
  test_stage: $build/stage/test
  source_cache: /var/cache/slurm-factory/sourcecache
  misc_cache: $build/misc
  license_dir: $build/user/licenses
  build_jobs: 2
  verify_ssl: true
  checksum: true
  shared_linking:
    type: rpath
    bind: false
  connect_timeout: 20
  db_lock_timeout: 3600
  install_status: true
  suppress_gpg_warnings: true
YAML
    {
        printf 'packages:\n  all:\n    target:\n    - x86_64\n    providers:\n      awk:\n      - mawk\n      zlib-api:\n      - zlib\n'
        external gmake "$gmake"
        external mawk "$mawk"
        cat <<YAML
  gcc:
    externals:
    - spec: gcc@$gcc languages:='c,c++'
      prefix: /usr
      extra_attributes:
        compilers:
          c: /usr/bin/gcc
          cxx: /usr/bin/g++
    buildable: false
  zlib:
    require:
    - "$zlib"
  lz4:
    require:
    - "@1.10.0"
  libgcrypt:
    require:
    - "@1.11.0"
  libgpg-error:
    require:
    - "@1.51"
YAML
    } >"$scope/packages.yaml"
    cat >"$scope/repos.yaml" <<YAML
"repos:":
  e2e_debian: /opt/slurm-factory/overlay/0/spack_repo/e2e_debian
  contract: /opt/slurm-factory/overlay/1/spack_repo/contract
  slurm_factory: /opt/slurm-factory/repo/spack_repo/slurm_factory
  builtin: /opt/spack-packages/repos/spack_repo/builtin
YAML
    cat >"$scope/mirrors.yaml" <<YAML
"mirrors:":
  source-0:
    url: file:///var/cache/slurm-factory/mirror/0
    source: true
    binary: false
YAML
    cat >"$scope/bootstrap.yaml" <<YAML
"bootstrap:":
  enable: true
  root: $build/user/bootstrap
  sources: []
  trusted: {}
YAML
    cat >"$scope/concretizer.yaml" <<YAML
concretizer:
  reuse: false
  unify: true
  targets:
    granularity: generic
YAML
    cat >"$environment/spack.yaml" <<YAML
spack:
  specs:
$(printf '  - %s\n' "$@")
  view:
    default:
      root: $build/view/$name/view
      link: all
      link_type: hardlink
  concretizer:
    unify: true
YAML
}

# --- the same calls on both -------------------------------------------------------------------------------------------------

# call WHO LOG ENVIRONMENT MIRROR ARGUMENT...: as slurm-factory calls Spack; its output and status are kept
call() {
    local who=$1 log=$work/$1/$2.log environment=$3 mirror=$4 status=0
    shift 4
    sandbox "$who" "$mirror" /opt/spack/bin/spack --color never -C "/slurm-factory.build/scope/$environment" \
        -e "/slurm-factory.build/env/$environment" "$@" >"$log" 2>&1 || status=$?
    # Whatever number Spack ends with: that it is not 0 is what counts.
    printf 'rc %s\n' "$((status != 0))" >>"$log"
}

for who in standin spack; do
    printf 'contract: %s\n' "$who" >&2
    rm -rf "${work:?}/$who"
    mkdir -p "$work/$who/source-cache" "$work/$who/slot"/{store,env,view,scope,stage,misc,user,gnupg,home}
    chmod 0700 "$work/$who/slot/gnupg"
    if [[ -z ${gcc:-} ]]; then
        gcc=$(first_version "$who" gcc -dumpfullversion)
        gmake=$(first_version "$who" make --version)
        mawk=$(first_version "$who" mawk -W version)
    fi
    configure "$who" good '@1.3.1' zlib lz4 libgcrypt
    configure "$who" bad '@9.9.9' zlib
    configure "$who" failing '@1.3.1' zlib
    started=$SECONDS
    call "$who" 0-unknown-command good "$work/empty" frobnicate
    call "$who" 1-unknown-option good "$work/empty" install --frobnicate
    call "$who" 2-unknown-version bad "$work/empty" concretize --force
    call "$who" 3-not-concretized good "$work/empty" install --only-concrete --fail-fast -j 2
    call "$who" 4-concretize good "$sources" concretize --force
    call "$who" 4-fetch-nothing good "$work/empty" fetch --missing
    call "$who" 5-no-sources good "$work/empty" install --only-concrete --fail-fast -j 2
    call "$who" 6-concretize-one failing "$sources" concretize --force
    make=$work/failing-make
    call "$who" 7-failing-build failing "$sources" install --only-concrete --fail-fast -j 2
    make=
    call "$who" 7-fetch good "$sources" fetch --missing
    call "$who" 8-install good "$sources" install --only-concrete --fail-fast -j 2
    call "$who" 9-again good "$sources" install --only-concrete --fail-fast -j 2
    call "$who" 9-fetch-again good "$sources" fetch --missing
    call "$who" 9-concretize-again good "$sources" concretize --force
    if ! grep -q '^==> Updating view' "$work/$who/8-install.log"; then
        tail -n 40 "$work/$who"/{4-concretize,8-install}.log >&2
        die "$who does not install the environment"
    fi
    printf 'contract: %s: %s s\n' "$who" "$((SECONDS - started))" >&2
    sandbox "$who" "$work/empty" python3 /opt/contract/contract.py collect \
        /slurm-factory.build/env/good "$tree" /slurm-factory.build/view/good/view >"$work/$who/facts.json"
done

python3 "$standin/contract.py" compare "$work/spack" "$work/standin"
