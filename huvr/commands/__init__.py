"""What the verbs of the command line do; :mod:`huvr.cli` lists them."""
