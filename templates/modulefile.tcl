#%Module1.0
# Slurm {{ slurm_release }}, built with GCC {{ compiler_release }} by slurm-factory {{ tool_version }}.
# For Environment Modules; Lmod takes the .lua file beside this one, and both do the same. The folder is found from
# SLURM_INSTALL_PREFIX (the package's folder or its view) when that is set, else from the place of this file. No
# LD_LIBRARY_PATH: the programs find their libraries themselves.

proc ModulesHelp {} {
    puts stderr {{ help | tcl }}
}
module-whatis {{ ("Name: slurm") | tcl }}
module-whatis {{ ("Version: " ~ slurm_release) | tcl }}
module-whatis {{ ("Description: Slurm workload manager, built with GCC " ~ compiler_release ~ " for " ~ toolchain) | tcl }}
module-whatis {{ ("Package: " ~ label) | tcl }}
module-whatis {{ ("URL: https://slurm.schedmd.com") | tcl }}

proc slurm_view {file} {
    global env
    # What was loaded is what is unloaded, whatever has been set in between.
    if {[module-info mode] in {unload remove} && [info exists env(SLURM_PREFIX)] && $env(SLURM_PREFIX) ne ""} {
        return $env(SLURM_PREFIX)
    }
    if {[info exists env(SLURM_INSTALL_PREFIX)] && $env(SLURM_INSTALL_PREFIX) ne ""} {
        set given [string trimright $env(SLURM_INSTALL_PREFIX) /]
        set view $given
        if {[file isdirectory [file join $given {{ layout_view | tcl }}]]} {
            set view [file join $given {{ layout_view | tcl }}]
        }
        if {![file isdirectory [file join $view bin]]} {
            error "SLURM_INSTALL_PREFIX is $given, and there is no Slurm there. Set it to the folder in which the package was unpacked, or unset it."
        }
        return $view
    }
{% include "view.tcl" %}
    error "The Slurm package of $file was not found beside it. Set SLURM_INSTALL_PREFIX to the folder in which it was unpacked."
}

conflict slurm

if {[module-info mode] ni {help whatis}} {
    set view [slurm_view $ModulesCurrentModulefile]
    setenv SLURM_ROOT $view
    setenv SLURM_PREFIX $view
    prepend-path PATH [file join $view sbin]
    prepend-path PATH [file join $view bin]
    prepend-path MANPATH [file join $view share/man]
    # An empty part keeps the system's own pages.
    append-path MANPATH {}
    prepend-path CMAKE_PREFIX_PATH $view
    # Where a site's rule keeps them.
    foreach lib {lib64 lib} {
        set dir [file join $view $lib pkgconfig]
        if {[file isdirectory $dir]} {
            prepend-path PKG_CONFIG_PATH $dir
        }
    }
}
