"""python -m ka2l_ray: the command line, as ``ka2l``."""

from ka2l_ray.jobs.commands.cli import main

main()
