#!/bin/sh
# The compiler that builds see, named gcc or g++: the real one, with what Spack's wrapper adds.
#
# Dependencies' headers and libraries, and an RPATH (never a RUNPATH) for the package's own and its dependencies' library
# folders. Added behind the caller's own arguments, so that those come first, as with Spack.

case ${0##*/} in
gcc | cc) compiler=$SPACK_CC target=$SPACK_TARGET_ARGS_CC ;;
g++ | c++) compiler=$SPACK_CXX target=$SPACK_TARGET_ARGS_CXX ;;
*)
    echo "compiler wrapper: called as ${0##*/}" >&2
    exit 1
    ;;
esac

mode="link"
for argument; do
    case $argument in
    -v | -V | --version | -dumpversion) exec "$compiler" "$@" ;;
    -c | -S | -E) mode=compile ;;
    esac
done

# Both are lists of folders with a colon between two.
IFS=:
for folder in $SPACK_STORE_INCLUDE_DIRS; do
    set -- "$@" "-I$folder"
done
if [ "$mode" = link ]; then
    for folder in $SPACK_STORE_LINK_DIRS; do
        set -- "$@" "-L$folder"
    done
    set -- "$@" -Wl,--disable-new-dtags
    for folder in $SPACK_STORE_RPATH_DIRS; do
        set -- "$@" "-Wl,-rpath,$folder"
    done
fi
unset IFS
# shellcheck disable=SC2086  # the target's arguments are words
exec "$compiler" $target "$@"
