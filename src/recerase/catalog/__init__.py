"""What is recommended, and to whom: items, interactions, concepts and item embeddings."""

from recerase.catalog.concept import Concept, Preview, parse_concept, preview
from recerase.catalog.embed import load_embeddings, sentence_embeddings, text_embeddings
from recerase.catalog.interactions import Catalogue, Histories, Interactions, Split, load_catalogue
from recerase.catalog.items import Items, load_items

__all__ = [
    "Catalogue",
    "Concept",
    "Histories",
    "Interactions",
    "Items",
    "Preview",
    "Split",
    "load_catalogue",
    "load_embeddings",
    "load_items",
    "parse_concept",
    "preview",
    "sentence_embeddings",
    "text_embeddings",
]
