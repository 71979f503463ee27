"""`python -m nwc`, the same as the command `nwc`."""

from nwc.cli.main import main

main()
