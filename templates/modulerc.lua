-- `module load {{ name }}` means this one, in this folder.
module_version({{ module | lua }}, "default")
