"""Dagster assets, one module a group: call stations of the engine, report their manifests."""
