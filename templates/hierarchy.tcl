#%Module1.0
# {{ what }}, made by slurm-factory {{ tool_version }}: opens what was built with it.
module-whatis {{ ("Name: " ~ module_name) | tcl }}
module-whatis {{ ("Version: " ~ module_version) | tcl }}
module-whatis {{ ("Description: " ~ what) | tcl }}
conflict {{ module_name | tcl }}
if {[module-info mode] ni {help whatis}} {
    # From ROOT/{{ place }} to ROOT/{{ opens }}
    set root $ModulesCurrentModulefile
    for {set up 0} {$up < {{ depth - 1 }}} {incr up} {
        set root [file dirname $root]
    }
{%- if in_view %}
    # The package's folder, links in between followed.
    set view [file join [file dirname [file normalize $root]] {{ layout_view | tcl }}]
    if {![file isdirectory [file join $view bin]]} {
        error "The package of $ModulesCurrentModulefile was not found: load this module from where the package lies."
    }
    prepend-path PATH [file join $view bin]
    prepend-path MANPATH [file join $view share/man]
    # An empty part keeps the system's own pages.
    append-path MANPATH {}
    prepend-path CMAKE_PREFIX_PATH $view
    setenv MPI_HOME $view
{%- endif %}
    prepend-path MODULEPATH [file join $root {{ opens | tcl }}]
}
