"""`python -m controller.cli`: the command line without installing it."""

from controller.cli import main

main()
