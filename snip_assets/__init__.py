"""Find and remove the duplicates of image-text data sets, from their CLIP features."""

__version__ = "0.1.0"
