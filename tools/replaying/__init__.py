"""Parts of tools/replay: the list of runs, their input files, and the comparison of results."""
