-- Slurm {{ slurm_release }}, built with GCC {{ compiler_release }} by slurm-factory {{ tool_version }}.
-- Works wherever the package lies: the folder is found from SLURM_INSTALL_PREFIX (the package's folder or its
-- view) when that is set, else from the place of this file. No LD_LIBRARY_PATH: the programs find their libraries
-- themselves.

help({{ help | lua }})
whatis({{ ("Name: slurm") | lua }})
whatis({{ ("Version: " ~ slurm_release) | lua }})
whatis({{ ("Description: Slurm workload manager, built with GCC " ~ compiler_release ~ " for " ~ toolchain) | lua }})
whatis({{ ("Package: " ~ label) | lua }})
whatis({{ ("URL: https://slurm.schedmd.com") | lua }})

local function find_view()
   -- What was loaded is what is unloaded, whatever has been set in between.
   local loaded = os.getenv("SLURM_PREFIX")
   if mode() == "unload" and loaded and loaded ~= "" then
      return loaded
   end
   local given = os.getenv("SLURM_INSTALL_PREFIX")
   if given and given ~= "" then
      local below = pathJoin(given, {{ layout_view | lua }})
      local view = isDir(below) and below or pathJoin(given)
      if not isDir(pathJoin(view, "bin")) then
         LmodError("SLURM_INSTALL_PREFIX is " .. given .. ", and there is no Slurm there. Set it to the folder in which the package was unpacked, or unset it.")
      end
      return view
   end
{% include "view.lua" %}
   LmodError("The Slurm package of " .. myFileName() .. " was not found beside it. Set SLURM_INSTALL_PREFIX to the folder in which it was unpacked.")
end

family("slurm")
conflict("slurm")

local view = find_view()
if view then
   setenv("SLURM_ROOT", view)
   setenv("SLURM_PREFIX", view)
   prepend_path("PATH", pathJoin(view, "sbin"))
   prepend_path("PATH", pathJoin(view, "bin"))
   prepend_path("MANPATH", pathJoin(view, "share/man"))
   -- An empty part keeps the system's own pages.
   append_path("MANPATH", "")
   prepend_path("CMAKE_PREFIX_PATH", view)
   -- Where a site's rule keeps them.
   for _, lib in ipairs({ "lib64", "lib" }) do
      local dir = pathJoin(view, lib, "pkgconfig")
      if isDir(dir) then
         prepend_path("PKG_CONFIG_PATH", dir)
      end
   end
end
