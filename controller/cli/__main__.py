"""`python -m controller.cli`: the command line without its installed name."""

from controller.cli import main

main()
