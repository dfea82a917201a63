"""The suite: preprocessing and inference as services, joined by a link that is measured."""
