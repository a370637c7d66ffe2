"""Construction of generalized long-tailed benchmarks from any images."""
