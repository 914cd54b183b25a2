"""Cost models: latency per layer and per channel, measured or computed."""
