"""Contract checks that a plug-in can run on its own criterion, allocator, method, engine or metric."""
