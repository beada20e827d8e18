"""`python -m autoparallel`."""

from autoparallel.cli import main

main()
