"""Ray workers: long-lived actors that hold a model, and the pool that places them."""
