"""Report of a run: data model, terminal output and HTML page."""
