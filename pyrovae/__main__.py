"""`python -m pyrovae`."""

from pyrovae.cli import main

main()
