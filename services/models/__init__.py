"""The models: what there is (`catalogue`), and how the default one is made without torch (`efficientnet_lite0`)."""
