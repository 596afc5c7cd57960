"""A stand-in for the few Spack commands that slurm-factory uses, for machines that have no Spack."""
