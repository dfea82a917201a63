"""The load generator: when (schedule), what (samples), whom (target), and an honest account of what came back."""
