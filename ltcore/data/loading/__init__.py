"""From shards to batches: epoch sampler, loaders, caches."""
