   -- Up from PACKAGE/{{ place }}; links in between are followed.
   for _, file in ipairs({ myFileName(), abspath and abspath(myFileName()) }) do
      local package_dir = file
      for _ = 1, {{ depth }} do
         package_dir = package_dir and package_dir:match("^(.*)/[^/]+$")
      end
      local view = package_dir and pathJoin(package_dir, {{ layout_view | lua }})
      if view and isDir(pathJoin(view, "bin")) then
         return view
      end
   end
