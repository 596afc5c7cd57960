-- {{ what }}, made by slurm-factory {{ tool_version }}: opens what was built with it.
whatis({{ ("Name: " ~ module_name) | lua }})
whatis({{ ("Version: " ~ module_version) | lua }})
whatis({{ ("Description: " ~ what) | lua }})
family({{ family | lua }})
{%- if in_view %}
-- The package's folder, links in between followed.
local function find_package()
   for _, file in ipairs({ myFileName(), abspath and abspath(myFileName()) }) do
      local dir = file
      for _ = 1, {{ depth }} do
         dir = dir and dir:match("^(.*)/[^/]+$")
      end
      if dir and isDir(pathJoin(dir, {{ layout_view | lua }}, "bin")) then
         return dir
      end
   end
   LmodError("The package of " .. myFileName() .. " was not found: load this module from where the package lies.")
end
local view = pathJoin(find_package(), {{ layout_view | lua }})
prepend_path("PATH", pathJoin(view, "bin"))
prepend_path("MANPATH", pathJoin(view, "share/man"))
-- An empty part keeps the system's own pages.
append_path("MANPATH", "")
prepend_path("CMAKE_PREFIX_PATH", view)
setenv("MPI_HOME", view)
{%- endif %}
-- From ROOT/{{ place }} to ROOT/{{ opens }}
local root = myFileName()
for _ = 1, {{ depth - 1 }} do
   root = root:match("^(.*)/[^/]+$")
end
prepend_path("MODULEPATH", pathJoin(root, {{ opens | lua }}))
