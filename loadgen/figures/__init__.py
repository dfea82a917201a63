"""The paper's experiments, each as a plan, and what they say: `python -m loadgen figures`."""
