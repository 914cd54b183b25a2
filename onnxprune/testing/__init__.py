"""Contract checks that a plug-in's tests run on its own objects.

`criteria.check_criterion`, `allocators.check_allocator`, `methods.check_method`,
`repairs.check_repair`, `engines.check_engine`, `metrics.check_metric`, `rules.check_rule`, and
`plans.check_plan` for the plans of allocators and methods. A violation raises
`contract.ContractError`.
"""
