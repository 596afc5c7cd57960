#%Module1.0
# GCC {{ release }}, built on {{ toolchain }} by slurm-factory {{ tool_version }}.
# For Environment Modules; Lmod takes the .lua file beside this one, and both do the same. The folder is found from the
# place of this file. No LD_LIBRARY_PATH: what the compiler links has the folder of the compiler's libraries in its
# search path.

proc ModulesHelp {} {
    puts stderr {{ help | tcl }}
}
module-whatis {{ "Name: gcc" | tcl }}
module-whatis {{ ("Version: " ~ release) | tcl }}
module-whatis {{ ("Description: GNU compilers for C, C++ and Fortran, built on " ~ toolchain) | tcl }}
module-whatis {{ ("Package: " ~ label) | tcl }}
module-whatis {{ "URL: https://gcc.gnu.org" | tcl }}

proc gcc_view {file} {
    global env
    # What was loaded is what is unloaded, whatever has been moved in between.
    if {[module-info mode] in {unload remove} && [info exists env(GCC_ROOT)] && $env(GCC_ROOT) ne ""} {
        return $env(GCC_ROOT)
    }
{% include "view.tcl" %}
    error "The compiler of $file was not found beside it."
}

conflict gcc

if {[module-info mode] ni {help whatis}} {
    set view [gcc_view $ModulesCurrentModulefile]
    setenv GCC_ROOT $view
    prepend-path PATH [file join $view bin]
    prepend-path MANPATH [file join $view share/man]
    # An empty part keeps the system's own pages.
    append-path MANPATH {}
}
