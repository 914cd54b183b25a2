"""Hand-off targets with programmable or fixed-function hardware; one module a target, each with one `TARGET`."""
