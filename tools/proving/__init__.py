"""Parts of tools/prove: small worlds per operator, their exhaustive check, and the record."""
