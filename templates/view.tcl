    # Up from PACKAGE/{{ place }}; links in between are followed.
    set places [list $file]
    if {![catch {file readlink $file} target]} {
        lappend places [file join [file dirname $file] $target]
    }
    lappend places [file normalize [lindex $places end]]
    foreach place $places {
        for {set up 0} {$up < {{ depth }}} {incr up} {
            set place [file dirname $place]
        }
        set view [file join $place {{ layout_view | tcl }}]
        if {[file isdirectory [file join $view bin]]} {
            return $view
        }
    }
