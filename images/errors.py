"""What goes wrong with images."""


class ImageError(Exception):
    """An image cannot be made or moved; the message names the cause and the remedy."""
