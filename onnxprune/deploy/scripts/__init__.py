"""Run scripts of bundles: standard library and the vendor's tools only, Python 3.8 or newer."""
