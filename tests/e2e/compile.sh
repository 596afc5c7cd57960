#!/bin/bash
#
# Compiles, links and runs with the GCC of an unpacked compiler's package, with nothing set:
#
#   compile.sh VIEW OUT        C, C++ and, where that GCC has it, Fortran; the programs stay in OUT
#   compile.sh VIEW OUT run    runs those programs again, on a host that has no compiler
set -euo pipefail

view=$1 out=$2

die() {
    echo "compile.sh: $*" >&2
    exit 1
}

# runs NAME: it says its name, and its libraries of GCC's are those beside the compiler
runs() {
    local said needed
    said=$("$out/$1") || die "$1 ended with $?"
    [[ $said == "$1 works" ]] || die "$1 says: $said"
    needed=$(ldd "$out/$1" | sed -n 's/^\s*\(\S*\) => \(.*\) (0x.*/\1 \2/p')
    while read -r library path; do
        case $library in
        libstdc++* | libgcc_s* | libgfortran* | libgomp* | libquadmath*)
            [[ $path == "$view"/* ]] || die "$1 loads $library from $path"
            ;;
        esac
    done <<<"$needed"
}

programs=(c cxx omp lto uses-shared)
if [[ -x $view/bin/gfortran ]]; then programs+=(fortran); fi

if [[ ${3:-} == run ]]; then
    for program in "${programs[@]}"; do runs "$program"; done
    exit
fi

if command -v gcc g++ as ld >/dev/null && gcc --version >/dev/null 2>&1; then die "this host has a compiler of its own"; fi
for tool in as ld; do
    found=$("$view/bin/gcc" "-print-prog-name=$tool")
    [[ $(readlink -f "$found") == "$view"/bin/* ]] || die "gcc takes $tool from $found"
done
cd "$out"
cat >c.c <<'C'
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
static void *body(void *x) { *(double *)x = sqrt(*(double *)x); return NULL; }
int main(void) {
    pthread_t thread;
    double x = INT_MAX > 0 ? 49 : 0;
    if (pthread_create(&thread, NULL, body, &x) || pthread_join(thread, NULL) || x != 7) return 1;
    return puts("c works") < 0;
}
C
cat >cxx.cc <<'CXX'
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
int main() {
    std::map<std::string, int> seen;
    try {
        seen.at("x");
    } catch (const std::out_of_range &) {
        std::cout << "cxx works" << std::endl;
        return 0;
    }
    return 1;
}
CXX
cat >omp.c <<'C'
#include <omp.h>
#include <stdio.h>
int main(void) {
    int sum = 0;
#pragma omp parallel for reduction(+ : sum)
    for (int i = 1; i <= 100; i++) sum += i;
    return sum != 5050 || omp_get_max_threads() < 1 || puts("omp works") < 0;
}
C
echo 'const char *name(void) { return "uses-shared works"; }' >shared.c
echo '#include <stdio.h>
const char *name(void);
int main(void) { return puts(name()) < 0; }' >uses-shared.c
sed 's/cxx works/lto works/' cxx.cc >lto.cc
"$view/bin/gcc" -O2 -Wall -Werror -o c c.c -lm -pthread
"$view/bin/g++" -O2 -Wall -Werror -o cxx cxx.cc
"$view/bin/gcc" -O2 -fopenmp -o omp omp.c
"$view/bin/g++" -O2 -flto -o lto lto.cc
"$view/bin/gcc" -shared -fPIC -o libshared.so shared.c
# shellcheck disable=SC2016  # the loader expands it
"$view/bin/gcc" -o uses-shared uses-shared.c -L. -lshared '-Wl,-rpath,$ORIGIN'
if [[ -x $view/bin/gfortran ]]; then
    printf 'program p\n  real(16) :: x\n  x = 2\n  if (sqrt(x) > 1) print "(a)", "fortran works"\nend program\n' >fortran.f90
    "$view/bin/gfortran" -O2 -o fortran fortran.f90
fi
# What GCC is made of is not offered to programs: these mean the host's, which has none.
if echo '#include <zlib.h>' | "$view/bin/gcc" -E - >/dev/null 2>&1; then die "the compiler's zlib.h is found"; fi
if echo 'int main(void) { return 0; }' | "$view/bin/gcc" -x c - -lz -o z 2>/dev/null; then die "the compiler's libz is linked"; fi
for program in "${programs[@]}"; do runs "$program"; done
echo "${programs[*]}"
