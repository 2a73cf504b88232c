"""What is recommended, and to whom: items, interactions, concepts and item embeddings."""

from recerase.catalog.embed import load_embeddings, sentence_embeddings, text_embeddings
from recerase.catalog.interactions import Catalogue, Histories, Interactions, Split, load_catalogue
from recerase.catalog.items import Items, load_items

__all__ = [
    "Catalogue",
    "Histories",
    "Interactions",
    "Items",
    "Split",
    "load_catalogue",
    "load_embeddings",
    "load_items",
    "sentence_embeddings",
    "text_embeddings",
]
