"""Cuts channels out of a model, and verifies the result against the masked original."""
