"""Other tools' files: detect, load, write back unchanged. One file a layout, one registry."""
