"""Measurements of Plumbline against its peers; see README.md."""
