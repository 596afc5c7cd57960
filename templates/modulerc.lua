-- `module load slurm` means this one, in this folder.
module_version({{ module | lua }}, "default")
