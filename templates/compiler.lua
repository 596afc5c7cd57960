-- GCC {{ release }}, built on {{ toolchain }} by slurm-factory {{ tool_version }}.
-- Works wherever the package lies: the folder is found from the place of this file. No LD_LIBRARY_PATH: what the
-- compiler links has the folder of the compiler's libraries in its search path.

help({{ help | lua }})
whatis({{ "Name: gcc" | lua }})
whatis({{ ("Version: " ~ release) | lua }})
whatis({{ ("Description: GNU compilers for C, C++ and Fortran, built on " ~ toolchain) | lua }})
whatis({{ ("Package: " ~ label) | lua }})
whatis({{ "URL: https://gcc.gnu.org" | lua }})

local function find_view()
   -- What was loaded is what is unloaded, whatever has been moved in between.
   local loaded = os.getenv("GCC_ROOT")
   if mode() == "unload" and loaded and loaded ~= "" then
      return loaded
   end
{% include "view.lua" %}
   LmodError("The compiler of " .. myFileName() .. " was not found beside it.")
end

family("compiler")
conflict("gcc")

local view = find_view()
if view then
   setenv("GCC_ROOT", view)
   prepend_path("PATH", pathJoin(view, "bin"))
   prepend_path("MANPATH", pathJoin(view, "share/man"))
   -- An empty part keeps the system's own pages.
   append_path("MANPATH", "")
end
