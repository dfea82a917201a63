"""The whole suite on one machine, without a cluster and without root: broker and services as child processes."""
