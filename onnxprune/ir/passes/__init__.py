"""Graph passes that run before the analysis; each leaves an equivalent model."""
