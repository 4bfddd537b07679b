"""The data engine: images in, pseudo-labels out."""
