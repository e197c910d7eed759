"""What starts work: the command line and the launchers."""
