"""Hand-off targets for FPGAs and NPUs, one module with a `TARGET` per tool flow."""
