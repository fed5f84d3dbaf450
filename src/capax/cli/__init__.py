"""The command line: one thin file for each command, loaded when it is called."""
