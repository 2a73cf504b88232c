"""Semantic IDs: the table, its trie, the codebooks behind it, and how all three are made from embeddings."""

from __future__ import annotations

from recerase.sid.codebooks import Codebooks, Recipe
from recerase.sid.quality import QualityReport, quality
from recerase.sid.quantize import TokenizeConfig, fit_codebooks, resolve_collisions, rq_kmeans, tokenize
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.table_files import read_json_table, read_table
from recerase.sid.trie import Trie

__all__ = [
    "Codebooks",
    "QualityReport",
    "Recipe",
    "SidSchema",
    "SidTable",
    "TokenizeConfig",
    "Trie",
    "fit_codebooks",
    "quality",
    "read_json_table",
    "read_table",
    "resolve_collisions",
    "rq_kmeans",
    "tokenize",
]
