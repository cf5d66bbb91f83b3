"""A shop's Django app: what a transaction of the outbox benchmarks writes."""
