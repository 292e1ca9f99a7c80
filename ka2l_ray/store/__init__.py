"""Artefacts on storage: content keys, manifest, lock; files on any filesystem."""
