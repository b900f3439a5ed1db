"""The engine: plan, proposals, jobs, workers, store, records, and what watches them."""
