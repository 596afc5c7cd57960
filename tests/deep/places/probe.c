/*
 * Preloaded into a program, loads the file that PROBE_FILE names with every symbol bound at once, prints what the loader
 * says, and ends: 0 when it was loaded. With PROBE_LAZY functions are bound when they are called, as Slurm itself loads plugins. The program's own main never runs, but its symbols are there, so that a plugin of
 * slurmctld is loaded as slurmctld would load it.
 * PROBE_FIRST names a library that is opened before, for everybody: one that the plugin opens itself when it is used.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void probe(void) {
    const char *file = getenv("PROBE_FILE");
    if (!file)
        return;
    const char *first = getenv("PROBE_FIRST");
    if (first && *first && !dlopen(first, RTLD_NOW | RTLD_GLOBAL))
        fprintf(stderr, "%s\n", dlerror());
    void *handle = dlopen(file, getenv("PROBE_LAZY") ? RTLD_LAZY : RTLD_NOW);
    if (!handle)
        fprintf(stderr, "%s\n", dlerror());
    fflush(NULL);
    _exit(handle ? 0 : 1);
}
