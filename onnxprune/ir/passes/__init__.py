"""Graph passes that run before the analysis; each returns an equivalent model."""
